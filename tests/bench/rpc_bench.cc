// Calls as a frontend makes them: a real kvernd behind a Unix socket, bytes inline or in a pool.
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "client/cli/bench/layer.h"
#include "client/cli/bench/measure.h"
#include "client/cpp/client.h"
#include "client/cpp/shared_pool.h"
#include "kernels/base/status_macros.h"
#include "server/main/server.h"
#include "tests/bench/allocations.h"
#include "tests/bench/benchmarks.h"
#include "tests/support/server_process.h"

namespace kvern::bench {
namespace {

constexpr int64_t kTokens = 32768;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kQHeads = 32;
constexpr int64_t kHeadDim = 128;
constexpr int32_t kPoolBlockTokens = 64;
constexpr int64_t kSmallTokens = 256;  // 1 MiB of keys and values

v1::Model SomeModel() {
  v1::Model model;
  model.mutable_spec()->set_num_layers(1);
  model.mutable_spec()->set_q_heads(kQHeads);
  model.mutable_spec()->set_kv_heads(kKvHeads);
  model.mutable_spec()->set_head_dim(kHeadDim);
  model.mutable_spec()->mutable_rope()->set_theta(10000);
  return model;
}

// Half of the tokens by key norm: the cheapest real policy, so that the call shows.
void FillPolicy(v1::Placement placement, v1::Policy* policy) {
  policy->mutable_budget()->set_keep_ratio(0.5);
  policy->add_scorers()->set_name("key_norm");
  policy->set_placement(placement);
}

// Keys or values of one layer, [kv_heads, tokens, head_dim] bf16.
std::string SomeBytes(int64_t tokens, uint64_t seed) {
  std::string bytes(kKvHeads * tokens * kHeadDim * 2, '\0');
  auto* to = reinterpret_cast<BFloat16*>(bytes.data());
  const std::vector<float> normals = NormalFloats(kSmallTokens * kHeadDim, seed);
  for (size_t i = 0; i < bytes.size() / 2; ++i) {
    to[i] = FromFloat<BFloat16>(normals[i % normals.size()]);
  }
  return bytes;
}

// A client of one server, with a pool that holds one small and one long sequence.
struct Frontend {
  client::Client client;
  std::string model;
  client::SharedPool pool;
  uint64_t epoch = 0;

  static absl::StatusOr<Frontend> Connect(const std::string& address) {
    KVERN_ASSIGN_OR_RETURN(client::Client client, client::Client::Connect(address));
    KVERN_ASSIGN_OR_RETURN(const v1::Model model, client.RegisterModel(SomeModel()));
    client::SharedPoolOptions options;
    options.model = model.name();
    options.kv_heads = kKvHeads;
    options.head_dim = kHeadDim;
    options.layers = {0};
    options.block_tokens = kPoolBlockTokens;
    options.num_blocks = 3 * kTokens / kPoolBlockTokens;
    KVERN_ASSIGN_OR_RETURN(client::SharedPool pool, client::SharedPool::Create(client, options));
    return Frontend{std::move(client), model.name(), std::move(pool)};
  }

  absl::StatusOr<std::vector<uint32_t>> Place(int64_t tokens) {
    KVERN_ASSIGN_OR_RETURN(std::vector<uint32_t> blocks,
                           pool.AllocateBlocks(pool.BlocksFor(tokens)));
    const std::string k = SomeBytes(tokens, 1), v = SomeBytes(tokens, 2);
    KVERN_RETURN_IF_ERROR(
        pool.Write({std::as_bytes(std::span(k)), std::as_bytes(std::span(v)), tokens}, blocks));
    return blocks;
  }

  v1::CompressCacheRequest Request(v1::Placement placement) const {
    v1::CompressCacheRequest request;
    request.set_model(model);
    FillPolicy(placement, request.mutable_policy());
    return request;
  }

  // `count` sequences of equal length over the pool.
  absl::StatusOr<v1::CompressCacheRequest> Pooled(v1::Placement placement, int64_t tokens,
                                                  int count) {
    v1::CompressCacheRequest request = Request(placement);
    for (int i = 0; i < count; ++i) {
      KVERN_ASSIGN_OR_RETURN(const std::vector<uint32_t> blocks, Place(tokens));
      v1::SequenceRequest* sequence = request.add_sequences();
      sequence->set_sequence_id(absl::StrCat(static_cast<int>(placement), "/", tokens, "/", i));
      v1::PagedSource* paged = sequence->mutable_paged();
      paged->set_pool(pool.Name());
      paged->set_num_tokens(tokens);
      paged->mutable_block_ids()->Assign(blocks.begin(), blocks.end());
      if (placement != v1::PLACEMENT_COPY_TO) continue;
      KVERN_ASSIGN_OR_RETURN(const std::vector<uint32_t> destination,
                             pool.AllocateBlocks(pool.BlocksFor(tokens / 2)));
      paged->mutable_destination_block_ids()->Assign(destination.begin(), destination.end());
    }
    return request;
  }

  absl::StatusOr<v1::CompressCacheRequest> Inline(v1::Placement placement) {
    v1::CompressCacheRequest request = Request(placement);
    for (const char* path : {"kept", "k", "v"}) request.mutable_response_mask()->add_paths(path);
    v1::SequenceRequest* sequence = request.add_sequences();
    sequence->set_sequence_id("inline");
    v1::InlineSource* source = sequence->mutable_inline_();
    source->add_layer_indices(0);
    v1::Tensor* tensors[] = {source->mutable_k(), source->mutable_v()};
    for (int role = 0; role < 2; ++role) {
      tensors[role]->set_dtype(v1::DTYPE_BF16);
      for (const int64_t extent : {int64_t{1}, kKvHeads, kSmallTokens, kHeadDim}) {
        tensors[role]->add_shape(extent);
      }
      tensors[role]->set_data(SomeBytes(kSmallTokens, 1 + role));
    }
    return request;
  }

  // A higher epoch forgets what the last call did: every call is the first of its sequence.
  absl::Status Call(v1::CompressCacheRequest& request) {
    epoch += 2;
    for (v1::SequenceRequest& sequence : *request.mutable_sequences()) sequence.set_epoch(epoch);
    KVERN_ASSIGN_OR_RETURN(const v1::CompressCacheResponse response, client.Compress(request));
    for (const v1::SequenceResult& result : response.results()) {
      KVERN_RETURN_IF_ERROR(client::SequenceStatus(result));
    }
    return absl::OkStatus();
  }
};

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

using Call = std::function<absl::Status(Frontend&)>;
using MakeCall = std::function<absl::StatusOr<Call>(Frontend&)>;

void Measure(benchmark::State& state, const MakeCall& make) {
  constexpr int kWarmUp = 20;
  Frontend* frontend = TheFrontend();
  if (frontend == nullptr) return state.SkipWithError("no server");
  absl::StatusOr<Call> call = make(*frontend);
  absl::Status status = call.status();
  for (int i = 0; i < kWarmUp && status.ok(); ++i) status = (*call)(*frontend);
  std::vector<double> micros;
  for (auto unused : state) {
    const Instant begin = Now();
    if (status.ok()) status = (*call)(*frontend);
    const Instant took = Now() - begin;
    state.SetIterationTime(took.wall);
    micros.push_back(took.wall * 1e6);
    // Each call is a line of the log, whose pipe holds some hundred.
    if (micros.size() % 64 == 0) TheServer()->Log();
  }
  if (!status.ok()) return state.SkipWithError(status.ToString().c_str());
  std::sort(micros.begin(), micros.end());
  state.counters["p50_us"] = Quantile(micros, 0.50);
  state.counters["p99_us"] = Quantile(micros, 0.99);
  state.counters["min_us"] = micros.front();
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
    return [request](Frontend& at) mutable { return at.Call(request); };
  };
}

absl::StatusOr<Call> InfoCall(Frontend&) {
  return [](Frontend& frontend) { return frontend.client.GetServerInfo().status(); };
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
    for (int i = 0; i < 200 && status.ok(); ++i) status = (*call)(*frontend);
    const int64_t before = Allocations();
    int64_t calls = 0;
    for (auto unused : state) {
      if (status.ok()) status = (*call)(*frontend);
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
  Register("CompressCache inline 1 MiB, RETURN", 1000,
           Sends([](Frontend& frontend) { return frontend.Inline(v1::PLACEMENT_RETURN); }));
  Register("CompressCache inline 1 MiB, INDICES_ONLY", 1000,
           Sends([](Frontend& frontend) { return frontend.Inline(v1::PLACEMENT_INDICES_ONLY); }));
  Register("CompressCache pooled 1 MiB, COPY_TO", 2000,
           pooled(v1::PLACEMENT_COPY_TO, kSmallTokens, 1));
  Register("CompressCache pooled 1 MiB, INDICES_ONLY", 2000,
           pooled(v1::PLACEMENT_INDICES_ONLY, kSmallTokens, 1));
  Register("CompressCache pooled 16 x 1 MiB, COPY_TO", 500,
           pooled(v1::PLACEMENT_COPY_TO, kSmallTokens, 16));
  Register("CompressCache pooled 128 MiB, COPY_TO", 100, pooled(v1::PLACEMENT_COPY_TO, kTokens, 1));
  RegisterAllocations("GetServerInfo", &InfoCall);
  RegisterAllocations("CompressCache pooled 1 MiB, COPY_TO",
                      pooled(v1::PLACEMENT_COPY_TO, kSmallTokens, 1));
  RegisterAllocations("CompressCache pooled 16 x 1 MiB, COPY_TO",
                      pooled(v1::PLACEMENT_COPY_TO, kSmallTokens, 16));
}

}  // namespace kvern::bench
