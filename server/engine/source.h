// Where a sequence's cache lies: leases its memory and makes the views that the pipeline reads.
#ifndef KVERN_SERVER_ENGINE_SOURCE_H_
#define KVERN_SERVER_ENGINE_SOURCE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/base/reuse.h"
#include "server/engine/compress_job.h"
#include "server/engine/model_registry.h"
#include "server/engine/slot_positions.h"
#include "server/memory/pool.h"
#include "server/memory/store.h"
#include "server/pipeline/resolve.h"
#include "server/pipeline/sequence_input.h"

namespace kvern::engine {

// A sequence with its lease. Pinned: `input` points into it and into the job.
struct BoundSource final : Recycled<BoundSource> {
  BoundSource() = default;
  BoundSource(const BoundSource&) = delete;
  BoundSource& operator=(const BoundSource&) = delete;

  pipeline::Source kind = pipeline::Source::kInline;
  pipeline::SequenceInput input;
  pipeline::Calibrations calibrations;
  std::shared_ptr<const memory::Pool> pool;        // paged
  const PagedSource* paged = nullptr;              // paged
  std::shared_ptr<memory::StoredSequence> stored;  // stored
  ScratchVector<int32_t> lengths;                  // [layers * kv_heads], empty: all equal
  DType dtype = DType::kBF16;
  memory::EngineLabel engine = memory::EngineLabel::kOther;
  struct Staged {
    StagedRows keys, values;
    ScratchVector<KvRef> source_keys, source_values;  // the memory itself
  };
  std::optional<Staged> staged;  // set: `input` reads these rows

  SlotShape Shape() const;
  // Elements held by one (layer, kv_head) token, K and V together, in bytes.
  int64_t TokenBytes() const;
  int64_t TotalTokens() const;  // over all rows
};

struct SourceTables {
  const memory::PoolTable& pools;
  memory::Store& store;
  const Limits& limits;
};

// Leases the memory and sets kind, views, dtype, lengths and layers. Errors: NotFound/POOL_EXPIRED
// or SEQUENCE_UNKNOWN; FailedPrecondition/SEQUENCE_PACKED; InvalidArgument (field path inside the
// sequence).
absl::StatusOr<std::unique_ptr<BoundSource>> BindSource(const SequenceJob& job,
                                                        const SourceTables& tables,
                                                        const RegisteredModel& model);
// Checks what else the job says of a bound source: ranges, prefix, side tensors. Sets those members
// of `source->input`.
absl::Status BindDetails(const SequenceJob& job, BoundSource* source);

// Has `source->input` read rows where ops of the backend reach them, copied there at most once;
// until Unstage. Errors: ResourceExhausted when the device holds no copy more, and of stops.
absl::Status Stage(Backend& backend, BoundSource* source);
// `source->input` reads the memory itself again, copies are gone.
void Unstage(BoundSource* source);

// What the stages can count on.
pipeline::Availability AvailabilityOf(const BoundSource& source);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_SOURCE_H_
