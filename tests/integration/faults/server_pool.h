// A canary pool registered with a real server, and the calls that tests make over it.
#ifndef KVERN_TESTS_INTEGRATION_FAULTS_SERVER_POOL_H_
#define KVERN_TESTS_INTEGRATION_FAULTS_SERVER_POOL_H_

#include <cstring>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/cpp/broker_connection.h"
#include "client/cpp/client.h"
#include "kernels/base/status_macros.h"
#include "tests/integration/faults/canary_pool.h"
#include "tests/support/server_process.h"

namespace kvern::faults {

inline v1::Model TestModel(int64_t head_dim) {
  v1::Model model;
  v1::ModelSpec* spec = model.mutable_spec();
  spec->set_num_layers(kLayers);
  spec->set_q_heads(kQHeads);
  spec->set_kv_heads(kKvHeads);
  spec->set_head_dim(static_cast<int32_t>(head_dim));
  spec->mutable_rope()->set_theta(10000);
  return model;
}

inline void Describe(const PoolLayout& layout, const PlaneAt& plane, int64_t layer,
                     v1::KvView* view) {
  view->set_base_offset(plane.base + layer * layout.layer_stride);
  view->set_block_stride(plane.strides.block);
  view->set_head_stride(plane.strides.head);
  view->set_token_stride(plane.strides.token);
  view->set_dim_stride(plane.strides.dim);
}

struct PoolNames {
  std::string name;   // `pools/{pool}`
  std::string model;  // `models/{model}`
};
// The frontend's side of a pool: while the broker connection is open, the pool lives.
struct ServerPool : PoolNames {
  client::BrokerConnection broker;
};

inline std::string BrokerPath(const support::ServerProcess& server) {
  return server.SocketPath("kvern.broker.sock");
}

inline absl::StatusOr<ServerPool> RegisterPool(const client::Client& client,
                                               const std::string& broker_path,
                                               const PoolLayout& layout,
                                               const SharedMemory& memory) {
  KVERN_ASSIGN_OR_RETURN(client::BrokerConnection broker,
                         client::BrokerConnection::Connect(broker_path, absl::Seconds(30)));
  KVERN_ASSIGN_OR_RETURN(const std::string attachment, broker.Attach(memory.Descriptor()));
  KVERN_ASSIGN_OR_RETURN(const v1::Model model, client.RegisterModel(TestModel(layout.head_dim)));
  v1::Pool pool;
  pool.set_model(model.name());
  pool.set_dtype(v1::DTYPE_BF16);
  pool.set_block_tokens(static_cast<int32_t>(layout.block_tokens));
  pool.set_num_blocks(layout.num_blocks);
  pool.add_regions()->set_attachment_id(attachment);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    v1::PoolLayer* described = pool.add_layers();
    described->set_layer(static_cast<int32_t>(layer));
    Describe(layout, layout.k, layer, described->mutable_k());
    Describe(layout, layout.v, layer, described->mutable_v());
  }
  KVERN_ASSIGN_OR_RETURN(const v1::RegisterPoolResponse response, client.RegisterPool(pool));
  return ServerPool{{response.pool().name(), model.name()}, std::move(broker)};
}

// A table of the pool and what shall become of it.
struct CallCase {
  std::string sequence = "a";
  Blocks blocks;
  int64_t tokens = 0;
  int64_t budget = 0;
  Blocks destination = {};
  v1::Placement placement = v1::PLACEMENT_COPY_TO;
  int64_t readonly_prefix = 0;
  bool asks_kept = true;
};

inline void AddSequence(const PoolNames& pool, const CallCase& call,
                        v1::CompressCacheRequest* request) {
  v1::SequenceRequest* sequence = request->add_sequences();
  sequence->set_sequence_id(call.sequence);
  sequence->set_readonly_prefix_tokens(call.readonly_prefix);
  v1::PagedSource* paged = sequence->mutable_paged();
  paged->set_pool(pool.name);
  paged->mutable_block_ids()->Assign(call.blocks.begin(), call.blocks.end());
  paged->set_num_tokens(call.tokens);
  paged->mutable_destination_block_ids()->Assign(call.destination.begin(), call.destination.end());
}

// Keys of small norm stay, each head its own: the plan depends on every key of the table.
inline v1::CompressCacheRequest RequestOf(const PoolNames& pool, const CallCase& call) {
  v1::CompressCacheRequest request;
  request.set_model(pool.model);
  v1::Policy* policy = request.mutable_policy();
  policy->mutable_budget()->set_tokens(call.budget);
  policy->add_scorers()->set_name("key_norm");
  policy->set_sink_tokens(1);
  policy->set_recent_tokens(2);
  policy->set_recent_share(0);
  policy->set_placement(call.placement);
  if (call.asks_kept) request.mutable_response_mask()->add_paths("kept");
  AddSequence(pool, call, &request);
  return request;
}

// The one result of a call that succeeds as a whole.
inline absl::StatusOr<v1::SequenceResult> CompressOne(const client::Client& client,
                                                      const v1::CompressCacheRequest& request) {
  KVERN_ASSIGN_OR_RETURN(v1::CompressCacheResponse response, client.Compress(request));
  if (response.results_size() != 1) return absl::InternalError("want one result");
  return std::move(*response.mutable_results(0));
}

// Sum of a family's values over the labels that contain `label`.
inline int64_t MetricSum(const std::string& page, const std::string& family,
                         const std::string& label = "") {
  double sum = 0;
  for (const absl::string_view line : absl::StrSplit(page, '\n')) {
    absl::string_view rest = line;
    if (!absl::ConsumePrefix(&rest, family) || rest.empty()) continue;
    if ((rest[0] != '{' && rest[0] != ' ') || !absl::StrContains(rest, label)) continue;
    double value = 0;
    if (absl::SimpleAtod(rest.substr(rest.rfind(' ') + 1), &value)) sum += value;
  }
  return static_cast<int64_t>(sum);
}

inline KeptTokens KeptOf(const v1::SequenceResult& result) {
  KeptTokens kept;
  kept.max_kept = result.num_physical_tokens();
  kept.tokens.resize(result.kept().size() / sizeof(int32_t));
  std::memcpy(kept.tokens.data(), result.kept().data(), result.kept().size());
  return kept;
}

inline Blocks TableOf(const v1::SequenceResult& result) {
  return {result.block_ids().begin(), result.block_ids().end()};
}

}  // namespace kvern::faults

#endif  // KVERN_TESTS_INTEGRATION_FAULTS_SERVER_POOL_H_
