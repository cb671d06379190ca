// Calls as a frontend makes them: a real kvernd behind a Unix socket, bytes inline or in a pool.
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "client/cli/bench/measure.h"
#include "kernels/base/status_macros.h"
#include "server/main/server.h"
#include "tests/bench/allocations.h"
#include "tests/bench/benchmarks.h"
#include "tests/bench/frontend.h"
#include "tests/bench/in_process.h"
#include "tests/support/server_process.h"

namespace kvern::bench {
namespace {

// Requests above this are told as a rate too.
constexpr int64_t kCountedBytes = int64_t{1} << 20;
constexpr int64_t kInlineTokens = 4096;  // 16 MiB, the default limit

// The server's process, started at the first call, with default flags. Null when it did not start.
support::ServerProcess* TheServer() {
  static std::unique_ptr<support::ServerProcess> server = support::ServerProcess::Start();
  return server.get();
}

// Its client. Null: the reason was printed.
Frontend* TheFrontend() {
  static Frontend* frontend = []() -> Frontend* {
    if (TheServer() == nullptr) return nullptr;
    auto connected = Frontend::Connect(TheServer()->Address());
    if (!connected.ok()) fprintf(stderr, "%s\n", connected.status().ToString().c_str());
    return connected.ok() ? new Frontend(*std::move(connected)) : nullptr;
  }();
  return frontend;
}

double Quantile(std::vector<double>& sorted, double share) {
  return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1))];
}

struct Call {
  std::function<absl::Status(Frontend&)> run;
  std::function<absl::Status(Frontend&)> undo = nullptr;  // so that it can run again, not timed
  int64_t bytes = 0;                                      // that it carries; 0: no rate is told
};
using MakeCall = std::function<absl::StatusOr<Call>(Frontend&)>;

absl::Status RunOnce(const Call& call, Frontend& frontend, double* seconds) {
  const Instant begin = Now();
  absl::Status status = call.run(frontend);
  *seconds = (Now() - begin).wall;
  if (status.ok() && call.undo != nullptr) status = call.undo(frontend);
  return status;
}

void Measure(benchmark::State& state, const MakeCall& make) {
  constexpr int kWarmUp = 20;
  Frontend* frontend = TheFrontend();
  if (frontend == nullptr) return state.SkipWithError("no server");
  absl::StatusOr<Call> call = make(*frontend);
  absl::Status status = call.status();
  double seconds = 0;
  for (int i = 0; i < kWarmUp && status.ok(); ++i) status = RunOnce(*call, *frontend, &seconds);
  std::vector<double> micros;
  for (auto unused : state) {
    if (status.ok()) status = RunOnce(*call, *frontend, &seconds);
    state.SetIterationTime(seconds);
    micros.push_back(seconds * 1e6);
    // Each call is a line of the log, whose pipe holds some hundred.
    if (micros.size() % 64 == 0) TheServer()->Log();
  }
  if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
  std::sort(micros.begin(), micros.end());
  state.counters["p50_us"] = Quantile(micros, 0.50);
  state.counters["p99_us"] = Quantile(micros, 0.99);
  state.counters["min_us"] = micros.front();
  if (call->bytes > 0) {
    state.counters["gb_per_s"] = static_cast<double>(call->bytes) / Quantile(micros, 0.50) * 1e-3;
  }
}

void Register(const std::string& name, int calls, const MakeCall& make) {
  benchmark::RegisterBenchmark(absl::StrCat("rpc/", name).c_str(),
                               [make](benchmark::State& state) { Measure(state, make); })
      ->Iterations(calls)
      ->UseManualTime();
}

MakeCall Sends(
    const std::function<absl::StatusOr<v1::CompressCacheRequest>(Frontend&)>& request_of) {
  return [request_of](Frontend& frontend) -> absl::StatusOr<Call> {
    KVERN_ASSIGN_OR_RETURN(v1::CompressCacheRequest request, request_of(frontend));
    const auto bytes = static_cast<int64_t>(request.ByteSizeLong());
    return Call{.run = [request](Frontend& at) mutable { return at.Call(request).status(); },
                .bytes = bytes > kCountedBytes ? bytes : 0};
  };
}

absl::StatusOr<Call> InfoCall(Frontend&) {
  return Call{.run = [](Frontend& at) { return at.client().GetServerInfo().status(); }};
}

// What the same work takes without a wire, on as many threads as the server has.
absl::StatusOr<Call> InProcessCall(pipeline::Placement placement, int64_t tokens) {
  KVERN_ASSIGN_OR_RETURN(std::shared_ptr<InProcess> bench, InProcess::Start({.tokens = tokens}));
  return Call{.run = [=](Frontend&) { return bench->Call(bench->Job(placement)); }};
}

absl::StatusOr<Call> UploadCall(Frontend& frontend, int64_t tokens) {
  const auto stored = std::make_shared<const Frontend::Stored>(frontend.ToStore(tokens));
  return Call{
      .run = [=](Frontend& at) { return at.Put(*stored); },
      .undo = [=](Frontend& at) { return at.client().DeleteSequence(stored->header.name()); },
      .bytes = static_cast<int64_t>(stored->k.size() + stored->v.size())};
}

// The same server in this process, where its allocations can be counted beside the client's.
void MeasureAllocations(benchmark::State& state, const MakeCall& make) {
  std::string directory = "/tmp/kvern-bench-XXXXXX";
  if (mkdtemp(directory.data()) == nullptr) return state.SkipWithError("no directory");
  Config config;
  config.listen = {"unix:" + directory + "/kvern.sock"};
  telemetry::StartLog(telemetry::LogFormat::kText, telemetry::LogLevel::kWarning);
  {
    auto server = Server::Start(config);
    absl::Status status = server.status();
    auto frontend = server.ok() ? Frontend::Connect(config.listen[0]) : status;
    status.Update(frontend.status());
    absl::StatusOr<Call> call = frontend.ok() ? make(*frontend) : status;
    status.Update(call.status());
    for (int i = 0; i < 200 && status.ok(); ++i) status = call->run(*frontend);
    const int64_t before = Allocations();
    int64_t calls = 0;
    for (auto unused : state) {
      if (status.ok()) status = call->run(*frontend);
      ++calls;
      state.SetIterationTime(1e-6);
    }
    state.counters["allocations"] =
        static_cast<double>(Allocations() - before) / static_cast<double>(calls);
    if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  }
  rmdir(directory.c_str());
}

void RegisterAllocations(const std::string& name, const MakeCall& make) {
  benchmark::RegisterBenchmark(absl::StrCat("allocations/", name).c_str(),
                               [make](benchmark::State& state) { MeasureAllocations(state, make); })
      ->Iterations(500)
      ->UseManualTime();
}

}  // namespace

void RegisterRpcBenchmarks() {
  const auto pooled = [](v1::Placement placement, int64_t tokens, int count) {
    return Sends([=](Frontend& frontend) { return frontend.Pooled(placement, tokens, count); });
  };
  Register("GetServerInfo", 5000, &InfoCall);
  Register("CompressCache inline 1 MiB, RETURN", 1000, Sends([](Frontend& frontend) {
             return frontend.Inline(v1::PLACEMENT_RETURN, kSmallTokens);
           }));
  Register("CompressCache inline 1 MiB, INDICES_ONLY", 1000, Sends([](Frontend& frontend) {
             return frontend.Inline(v1::PLACEMENT_INDICES_ONLY, kSmallTokens);
           }));
  Register("CompressCache inline 16 MiB, INDICES_ONLY", 60, Sends([](Frontend& frontend) {
             return frontend.Inline(v1::PLACEMENT_INDICES_ONLY, kInlineTokens);
           }));
  Register("PutSequence 128 MiB", 20,
           [](Frontend& frontend) { return UploadCall(frontend, kLongTokens); });
  Register("in process, pooled 1 MiB, COPY_TO", 2000,
           [](Frontend&) { return InProcessCall(pipeline::Placement::kCopyTo, kSmallTokens); });
  Register("CompressCache pooled 1 MiB, COPY_TO", 2000,
           pooled(v1::PLACEMENT_COPY_TO, kSmallTokens, 1));
  Register("CompressCache pooled 1 MiB, INDICES_ONLY", 2000,
           pooled(v1::PLACEMENT_INDICES_ONLY, kSmallTokens, 1));
  Register("CompressCache pooled 16 x 1 MiB, COPY_TO", 500,
           pooled(v1::PLACEMENT_COPY_TO, kSmallTokens, 16));
  Register("CompressCache pooled 128 MiB, COPY_TO", 100,
           pooled(v1::PLACEMENT_COPY_TO, kLongTokens, 1));
  RegisterAllocations("GetServerInfo", &InfoCall);
  RegisterAllocations("CompressCache pooled 1 MiB, COPY_TO",
                      pooled(v1::PLACEMENT_COPY_TO, kSmallTokens, 1));
  RegisterAllocations("CompressCache pooled 16 x 1 MiB, COPY_TO",
                      pooled(v1::PLACEMENT_COPY_TO, kSmallTokens, 16));
}

}  // namespace kvern::bench
