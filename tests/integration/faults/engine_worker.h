// An engine without sockets, over a canary pool: what a worker process runs.
#ifndef KVERN_TESTS_INTEGRATION_FAULTS_ENGINE_WORKER_H_
#define KVERN_TESTS_INTEGRATION_FAULTS_ENGINE_WORKER_H_

#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/backends.h"
#include "kernels/base/status_macros.h"
#include "server/engine/engine.h"
#include "tests/integration/faults/canary_pool.h"

namespace kvern::faults {

inline memory::PoolView ViewOf(const PoolLayout& layout, const PlaneAt& plane, int64_t layer) {
  return {0, plane.base + layer * layout.layer_stride, plane.strides};
}

// With the model "model" and the pool "pool".
inline absl::StatusOr<std::unique_ptr<engine::Engine>> MakeEngine(const PoolLayout& layout,
                                                                  const SharedMemory& memory,
                                                                  const std::string& backend_name) {
  KVERN_ASSIGN_OR_RETURN(auto backend, MakeBackend({.name = backend_name, .threads = 2}));
  Limits limits;
  limits.store_bytes = int64_t{1} << 20;
  KVERN_ASSIGN_OR_RETURN(auto engine,
                         engine::Engine::Create({.limits = limits, .backend = std::move(backend)}));
  engine::RegisteredModel model;
  model.id = "model";
  model.spec.num_layers = kLayers;
  model.spec.q_heads = kQHeads;
  model.spec.kv_heads = kKvHeads;
  model.spec.head_dim = static_cast<int32_t>(layout.head_dim);
  KVERN_RETURN_IF_ERROR(engine->Models().Register(model).status());
  KVERN_ASSIGN_OR_RETURN(auto region, memory::Region::Map(dup(memory.Descriptor()), getuid()));
  memory::PoolSpec spec;
  spec.id = "pool";
  spec.model = model.id;
  spec.kv_heads = kKvHeads;
  spec.head_dim = static_cast<int32_t>(layout.head_dim);
  spec.block_tokens = static_cast<int32_t>(layout.block_tokens);
  spec.num_blocks = layout.num_blocks;
  spec.regions = {engine->Attachments().Attach(std::move(region), /*connection=*/1)};
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    spec.layers.push_back({static_cast<int32_t>(layer), ViewOf(layout, layout.k, layer),
                           ViewOf(layout, layout.v, layer)});
  }
  KVERN_RETURN_IF_ERROR(engine->Pools().Register(spec).status());
  return engine;
}

// Keys of small norm stay, each head its own.
inline engine::CompressJob CopyJob(const std::string& sequence_id, const Blocks& blocks,
                                   int64_t tokens, int64_t budget, const Blocks& destination) {
  engine::CompressJob job;
  job.peer = "uid:0";
  job.model = "model";
  job.policy.budget = pipeline::TokenBudget{budget};
  job.policy.scorers = {{"key_norm", {}}};
  job.policy.sink_tokens = 1;
  job.policy.recent_tokens = 2;
  job.policy.recent_share = 0.0;
  job.policy.placement = pipeline::Placement::kCopyTo;
  job.fields.by_default = false;
  job.fields.kept = true;
  job.cancelled = std::make_shared<std::atomic<bool>>(false);
  engine::SequenceJob sequence;
  sequence.sequence_id = sequence_id;
  engine::PagedSource paged;
  paged.pool = "pool";
  paged.block_ids = blocks;
  paged.num_tokens = tokens;
  paged.destination_block_ids = destination;
  sequence.source = std::move(paged);
  job.sequences = {std::move(sequence)};
  return job;
}

}  // namespace kvern::faults

#endif  // KVERN_TESTS_INTEGRATION_FAULTS_ENGINE_WORKER_H_
