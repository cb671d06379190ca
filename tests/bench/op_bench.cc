// Every op of `kvern bench` under google-benchmark, on one and two threads, its allocations
// counted.
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "client/cli/bench/ops.h"
#include "kernels/backends.h"
#include "tests/bench/allocations.h"
#include "tests/bench/benchmarks.h"

namespace kvern::bench {
namespace {

// Rounds of one op: report.py takes median, p10 and p90 over them.
constexpr int kRounds = 9;

// Everything lives to the end of the process: benchmarks share it.
const Layer& TheLayer() {
  static const Layer& layer = *new Layer(Shape());
  return layer;
}
Backend& BackendOf(int threads) {
  static auto& backends = *new std::map<int, std::unique_ptr<Backend>>;
  std::unique_ptr<Backend>& backend = backends[threads];
  if (backend == nullptr) backend = MakeBackend({.name = "cpu", .threads = threads}).value();
  return *backend;
}
StreamRead& ReadOf(int threads) {
  static auto& reads = *new std::map<int, std::unique_ptr<StreamRead>>;
  std::unique_ptr<StreamRead>& read = reads[threads];
  const auto keys =
      std::span<const std::byte>(TheLayer().keys.refs()[0].base, TheLayer().shape.KeyBytes());
  if (read == nullptr) read = std::make_unique<StreamRead>(keys, threads);
  return *read;
}

void Count(const Round& round, const PreparedOp& op, benchmark::State& state) {
  const double read_bytes = static_cast<double>(TheLayer().shape.KeyBytes());
  const double floor_bytes = static_cast<double>(op.floor_bytes);
  state.SetIterationTime(round.op.wall);
  state.counters["wall_ms"] = round.op.wall * 1e3;
  state.counters["x_read"] = round.StreamReads();
  state.counters["x_read_cpu"] = round.StreamReadsCpu();
  state.counters["read_gbps"] = read_bytes / round.read.wall / 1e9;
  state.counters["floor_x"] = floor_bytes / read_bytes;
  state.counters["floor_mib"] = floor_bytes / (1 << 20);
  state.counters["tokens_per_s"] = static_cast<double>(TheLayer().shape.tokens) / round.op.wall;
}

// One run: report.py puts the repetitions together.
void MeasureOne(benchmark::State& state, StreamRead& read, const PreparedOp& op) {
  int64_t allocated = 0;  // in the second run
  const Run counted = [&]() -> absl::Status {
    const int64_t before = Allocations();
    const absl::Status status = op.run();
    allocated = Allocations() - before;
    return status;
  };
  for (auto unused : state) {
    const absl::StatusOr<Round> round = MeasureRound(read, counted);
    if (!round.ok()) return state.SkipWithError(round.status().ToString().c_str());
    Count(*round, op, state);
    state.counters["allocations"] = static_cast<double>(allocated);
  }
}

// The inputs of one benchmark: made when it runs, not when it is listed; given back with its last
// repetition, so that all of them need not fit in memory.
struct Inputs {
  std::optional<absl::StatusOr<PreparedOp>> op;
  int rounds_left = kRounds;
};

void Register(const Op& op, int64_t group, int threads) {
  const std::string name = op.reads_queries ? absl::StrCat(op.name, " G=", group) : op.name;
  const auto inputs = std::make_shared<Inputs>();
  const auto measure = [&op, group, threads, inputs](benchmark::State& state) {
    if (!inputs->op.has_value()) {
      inputs->op =
          op.prepare({&TheLayer(), &BackendOf(threads), group * TheLayer().shape.kv_heads});
    }
    if (inputs->op->ok()) {
      MeasureOne(state, ReadOf(threads), **inputs->op);
    } else {
      state.SkipWithError(inputs->op->status().ToString().c_str());
    }
    if (--inputs->rounds_left == 0) inputs->op.reset();
  };
  benchmark::RegisterBenchmark(absl::StrCat("op/", name, "/threads:", threads).c_str(), measure)
      ->Iterations(1)
      ->Repetitions(kRounds)
      ->UseManualTime();
}

}  // namespace

void RegisterOpBenchmarks() {
  for (const Op& op : Ops()) {
    for (const int threads : {1, 2}) {
      Register(op, /*group=*/1, threads);
      if (op.reads_queries) Register(op, /*group=*/4, threads);
    }
  }
}

}  // namespace kvern::bench
