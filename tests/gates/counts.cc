// Prints what noise cannot move: allocations of ops, of the engine and of whole calls in steady
// state, bytes of calls on the wire. counts.py holds them to what was committed.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/bench/ops.h"
#include "kernels/backends.h"
#include "kernels/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "server/main/server.h"
#include "tests/bench/allocations.h"
#include "tests/bench/frontend.h"
#include "tests/bench/in_process.h"

namespace kvern::bench {
namespace {

using nlohmann::ordered_json;

constexpr int kWarmRuns = 3;
constexpr int kWarmCalls = 100;
constexpr int kCalls = 200;

// Of one run; an op that has run before needs no new memory.
absl::StatusOr<ordered_json> OpAllocations() {
  const Layer layer(Shape{.tokens = 1024, .kv_heads = 4, .head_dim = 64, .dtype = DType::kBF16});
  KVERN_ASSIGN_OR_RETURN(const auto backend, MakeBackend({.name = "cpu", .threads = 1}));
  ordered_json counts;
  for (const Op& op : Ops()) {
    KVERN_ASSIGN_OR_RETURN(const PreparedOp prepared,
                           op.prepare({&layer, backend.get(), /*q_heads=*/8}));
    for (int run = 0; run < kWarmRuns; ++run) KVERN_RETURN_IF_ERROR(prepared.run());
    const int64_t before = Allocations();
    KVERN_RETURN_IF_ERROR(prepared.run());
    counts[op.name] = Allocations() - before;
  }
  return counts;
}

// The median of many calls: now and then gRPC grows a buffer or starts a thread. Of all threads of
// the process, but not what `prepare` asks for.
template <class Prepare, class Call>
absl::StatusOr<int64_t> AllocationsOf(const Prepare& prepare, const Call& call) {
  std::vector<int64_t> counts;
  for (int at = 0; at < kWarmCalls + kCalls; ++at) {
    auto prepared = prepare();
    const int64_t before = Allocations();
    KVERN_RETURN_IF_ERROR(call(prepared));
    if (at >= kWarmCalls) counts.push_back(Allocations() - before);
  }
  std::sort(counts.begin(), counts.end());
  return counts[kCalls / 2];
}

// From a job to its answer, without gRPC and protobuf.
absl::StatusOr<ordered_json> EngineAllocations() {
  ordered_json counts;
  for (const int sequences : {1, 16}) {
    KVERN_ASSIGN_OR_RETURN(const auto bench,
                           InProcess::Start({.backend = {.name = "cpu", .threads = 1},
                                             .tokens = kSmallTokens,
                                             .sequences = sequences}));
    const std::pair<const char*, pipeline::Placement> placements[] = {
        {"INDICES_ONLY", pipeline::Placement::kIndicesOnly},
        {"COPY_TO", pipeline::Placement::kCopyTo}};
    for (const auto& [name, placement] : placements) {
      KVERN_ASSIGN_OR_RETURN(
          counts[absl::StrCat("pooled ", sequences, " x 1 MiB, ", name)],
          AllocationsOf([&, at = placement] { return bench->Job(at); },
                        [&](engine::CompressJob& job) { return bench->Call(std::move(job)); }));
    }
  }
  return counts;
}

// Without the times that the answer tells: as varints they have the length of their digits.
absl::StatusOr<ordered_json> WireBytes(Frontend& frontend, v1::CompressCacheRequest request) {
  KVERN_ASSIGN_OR_RETURN(v1::CompressCacheResponse response, frontend.Call(request));
  for (v1::SequenceResult& result : *response.mutable_results()) result.clear_timings();
  return ordered_json{{"request", request.ByteSizeLong()}, {"response", response.ByteSizeLong()}};
}

struct NamedRequest {
  std::string name;
  v1::CompressCacheRequest request;
};

absl::StatusOr<std::vector<NamedRequest>> Requests(Frontend& frontend) {
  std::vector<NamedRequest> requests;
  const std::pair<const char*, v1::Placement> placements[] = {
      {"INDICES_ONLY", v1::PLACEMENT_INDICES_ONLY}, {"COPY_TO", v1::PLACEMENT_COPY_TO}};
  for (const int sequences : {1, 16}) {
    for (const auto& [name, placement] : placements) {
      requests.push_back({absl::StrCat("pooled ", sequences, " x 1 MiB, ", name), {}});
      KVERN_ASSIGN_OR_RETURN(requests.back().request,
                             frontend.Pooled(placement, kSmallTokens, sequences));
    }
  }
  requests.push_back({"inline 1 MiB, RETURN", frontend.Inline(v1::PLACEMENT_RETURN, kSmallTokens)});
  return requests;
}

// Allocations of client and server together.
absl::StatusOr<ordered_json> Calls(const std::string& address) {
  KVERN_ASSIGN_OR_RETURN(Frontend frontend, Frontend::Connect(address));
  ordered_json wire, allocations;
  KVERN_ASSIGN_OR_RETURN(
      allocations["GetServerInfo"],
      AllocationsOf([] { return 0; },
                    [&](int) { return frontend.client().GetServerInfo().status(); }));
  KVERN_ASSIGN_OR_RETURN(std::vector<NamedRequest> requests, Requests(frontend));
  for (NamedRequest& named : requests) {
    KVERN_ASSIGN_OR_RETURN(wire[named.name], WireBytes(frontend, named.request));
    KVERN_ASSIGN_OR_RETURN(
        allocations[named.name],
        AllocationsOf([] { return 0; },
                      [&](int) { return frontend.Call(named.request).status(); }));
  }
  return ordered_json{{"wire_bytes", wire}, {"call_allocations", allocations}};
}

absl::StatusOr<ordered_json> ServedCalls() {
  std::string directory = "/tmp/kvern-counts-XXXXXX";
  KVERN_CHECK(mkdtemp(directory.data()) != nullptr);
  Config config;
  config.listen = {"unix:" + directory + "/kvern.sock"};
  config.backend.name = "cpu";
  config.backend.threads = 1;
  telemetry::StartLog(telemetry::LogFormat::kText, telemetry::LogLevel::kWarning);
  absl::StatusOr<ordered_json> counts;
  {
    const auto server = Server::Start(config);
    counts = server.ok() ? Calls(config.listen[0]) : server.status();
  }
  rmdir(directory.c_str());
  return counts;
}

absl::Status Print() {
  KVERN_ASSIGN_OR_RETURN(ordered_json counts, ServedCalls());
  KVERN_ASSIGN_OR_RETURN(counts["engine_allocations"], EngineAllocations());
  KVERN_ASSIGN_OR_RETURN(counts["op_allocations"], OpAllocations());
  std::cout << counts.dump(1) << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvern::bench

int main() {
  const absl::Status status = kvern::bench::Print();
  if (!status.ok()) fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
