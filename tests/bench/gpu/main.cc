// Times every stage on the cuda backend by the device's own clock; prints JSON for
// tests/gates/model.py. Where there is no device, the emulated twin runs it at a small size.
#include <algorithm>
#include <cstdio>
#include <vector>

#include "CLI/CLI.hpp"
#include "kernels/backends.h"
#include "kernels/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "tests/bench/gpu/stages.h"

namespace kvern::bench {
namespace {

struct Options {
  CacheShape shape;
  int64_t kept = 2048;
  int rounds = 11;
  int64_t scratch_bytes = int64_t{24} << 30;
};

absl::StatusOr<nlohmann::ordered_json> Measure(Backend& backend, const Stage& stage, int rounds) {
  std::vector<int64_t> micros;
  for (int round = -1; round < rounds; ++round) {  // the first warms up
    KVERN_RETURN_IF_ERROR(backend.Lap().status());
    KVERN_RETURN_IF_ERROR(stage.run(backend));
    KVERN_ASSIGN_OR_RETURN(const int64_t lap, backend.Lap());
    if (round >= 0) micros.push_back(lap);
  }
  std::sort(micros.begin(), micros.end());
  return nlohmann::ordered_json{{"stage", stage.name},
                                {"floor_bytes", stage.floor_bytes},
                                {"micros", micros[micros.size() / 2]},
                                {"p10", micros[micros.size() / 10]},
                                {"p90", micros[micros.size() * 9 / 10]}};
}

absl::Status Run(const Options& options) {
  KVERN_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                         MakeBackend({.name = "cuda", .scratch_bytes = options.scratch_bytes}));
  KVERN_ASSIGN_OR_RETURN(const Stages made, MakeStages(*backend, options.shape, options.kept));
  nlohmann::ordered_json report;
  report["device"] = backend->Device()->name;
  report["shape"] = {{"layers", options.shape.layers},     {"kv_heads", options.shape.kv_heads},
                     {"q_heads", options.shape.q_heads},   {"tokens", options.shape.tokens},
                     {"head_dim", options.shape.head_dim}, {"kept", options.kept}};
  for (const Stage& stage : made.stages) {
    KVERN_ASSIGN_OR_RETURN(nlohmann::ordered_json row, Measure(*backend, stage, options.rounds));
    report["stages"].push_back(std::move(row));
  }
  std::printf("%s\n", report.dump(1).c_str());
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvern::bench

int main(int argc, char** argv) {
  kvern::bench::Options options;
  CLI::App app("Times every stage of the cuda backend on one cache in device memory.");
  app.add_option("--layers", options.shape.layers, "layers")->capture_default_str();
  app.add_option("--kv-heads", options.shape.kv_heads, "KV heads")->capture_default_str();
  app.add_option("--q-heads", options.shape.q_heads, "query heads")->capture_default_str();
  app.add_option("--tokens", options.shape.tokens, "tokens cached")->capture_default_str();
  app.add_option("--head-dim", options.shape.head_dim, "head_dim")->capture_default_str();
  app.add_option("--kept", options.kept, "tokens kept per layer and head")->capture_default_str();
  app.add_option("--rounds", options.rounds, "timed rounds")->capture_default_str();
  app.add_option("--scratch-bytes", options.scratch_bytes, "device memory to reserve")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = kvern::bench::Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "gpu_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}
