// The planner and the runs it makes: decide on the host, then move bytes without deciding.
#ifndef KVERN_SERVER_PIPELINE_PLAN_H_
#define KVERN_SERVER_PIPELINE_PLAN_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/base/reuse.h"
#include "server/pipeline/resolve.h"
#include "server/pipeline/sequence_input.h"

namespace kvern::pipeline {

struct StageMicros {
  int64_t plan = 0;
  int64_t score = 0;
  int64_t select = 0;
  int64_t encode = 0;
  int64_t move = 0;
};

// Counts before scores: budgets depend on geometry, calibration and bytes only.
struct CountPlan {
  ScratchVector<int32_t> counts;  // [layers, kv_heads] tokens to keep
  ScratchVector<int32_t> recent;  // [layers, kv_heads] recent tokens protected
  bool budget_grew = false;
  std::vector<std::string> warnings;
  bool EverythingStays(const SequenceInput& input) const;  // the identity
};

// What is kept and why.
struct KeepPlan {
  CountPlan counts;
  KeepList keep;
  std::vector<float> scores;  // [layers, kv_heads, tokens], protected = NaN; empty: none computed
                              // or none asked for
  ShapeClass shape_class = ShapeClass::kS0;
  int64_t nan_scores = 0;
  int64_t max_kept = 0;
  ScratchVector<int32_t> kept_positions;  // [layers, kv_heads, max_kept], -1 fills
  // Of the source's slots, where a scorer needed it: moving and packing use it again.
  std::shared_ptr<const RotationTable> rotation;
  StageMicros micros;
};

// Bytes of k + v as they are.
int64_t BytesBefore(const SequenceInput& input);
// Bytes after, metadata counted (quantization.md 4.1), for given counts.
int64_t PackedBytes(const SequenceInput& input, const ResolvedPolicy& policy,
                    const std::vector<int32_t>& counts);

// Errors: FailedPrecondition/BUDGET_BELOW_PROTECTED (byte budgets; on_conflict FAIL), and of
// stages.
absl::StatusOr<CountPlan> PlanCounts(const SequenceInput& input, const ResolvedPolicy& policy);

// One sequence of a cohort to plan; all borrowed.
struct KeepTask {
  const SequenceInput* input = nullptr;
  const ResolvedPolicy* policy = nullptr;
  const CountPlan* counts = nullptr;  // null: PlanCounts is asked
  bool want_scores = false;           // brings KeepPlan.scores to the host
};
using KeepOutcome = absl::StatusOr<KeepPlan>;
// Runs scorers and selector on the backend, one op for all sequences. Their policies name the same
// stages; dtype and model are the same too. A sequence that cannot be planned has its own error and
// leaves the others alone; the whole fails for a stop, for what an op answered, and for what a
// stage says of any sequence: then a smaller cohort may still succeed.
absl::StatusOr<ScratchVector<KeepOutcome>> PlanKeep(Backend& backend,
                                                    std::span<const KeepTask> cohort);
// A cohort of one, with scores.
absl::StatusOr<KeepPlan> PlanKeep(Backend& backend, const SequenceInput& input,
                                  const ResolvedPolicy& policy);

// A packed sequence to read, the bytes of ruling 13; `blocks` may lie where only ops reach them.
struct PackedView {
  std::span<const std::byte> blocks;
  std::span<const PackedRow> table;
  std::span<const Float16> mean_key;
  DType dtype = DType::kBF16;
  int64_t Bytes() const {
    return static_cast<int64_t>(blocks.size() + table.size_bytes() + mean_key.size_bytes());
  }
};
// One that owns them. Packed into room of the caller, it has neither blocks nor table.
struct PackedKv {
  std::vector<std::byte> blocks;
  std::vector<PackedRow> table;
  std::vector<Float16> mean_key;  // [layers, kv_heads, head_dim]; empty without rm
  DType dtype = DType::kBF16;
  EncodeCounts k_counts;
  EncodeCounts v_counts;
  operator PackedView() const { return {blocks, table, mean_key, dtype}; }
  int64_t Bytes() const { return PackedView(*this).Bytes(); }
};
// Where the caller wants the blocks of a table that PlanPackedTable made for the very task:
// `blocks` has the bytes it told, all zero, and may be memory of the backend. Borrowed.
struct PackRoom {
  std::span<const PackedRow> table;
  std::span<std::byte> blocks;
};
// Table and offsets for given counts: K before V, layers, heads, slots ascending.
std::vector<PackedRow> PlanPackedTable(const SequenceInput& input, const ResolvedPolicy& policy,
                                       const std::vector<int32_t>& counts, int64_t* total_bytes);
// One planned sequence of a cohort to pack; all borrowed.
struct PackTask {
  const SequenceInput* input = nullptr;
  const ResolvedPolicy* policy = nullptr;
  const KeepPlan* plan = nullptr;
  // Same form as mean_key: used instead of a new mean when not empty (ruling 12).
  std::span<const Float16> frozen_mean = {};
  const PackRoom* room = nullptr;  // null: PackedKv owns blocks and table
};
absl::StatusOr<std::vector<PackedKv>> Pack(Backend& backend, std::span<const PackTask> cohort);
// A cohort of one.
absl::StatusOr<PackedKv> Pack(Backend& backend, const SequenceInput& input,
                              const ResolvedPolicy& policy, const KeepPlan& plan,
                              std::span<const Float16> frozen_mean);

// Writes packed K and V into dense or paged views [layers]; positions are those of the packed slots
// [layers, kv_heads, max_kept] (-1 beyond a row's count). Validates the table against the sizes
// first: it may come from a file. Errors: InvalidArgument.
struct UnpackTarget {
  std::vector<KvRef> keys;
  std::vector<KvRef> values;
};
absl::Status Unpack(Backend& backend, const ModelSpec& model, const PackedView& packed,
                    const std::vector<int32_t>& positions, const UnpackTarget& target);

// Where kept K and V go, one view per layer: dense return, fresh blocks or in place (the memory of
// the source). `first_slot` tokens are already there.
struct MoveTarget {
  ScratchVector<KvRef> keys;
  ScratchVector<KvRef> values;
  int64_t first_slot = 0;
  bool in_place = false;  // counts where the rows read are those written, not a copy of them
};
// One planned sequence of a cohort to move; all borrowed but the target.
struct MoveTask {
  const SequenceInput* input = nullptr;
  const ResolvedPolicy* policy = nullptr;
  const KeepPlan* plan = nullptr;
  MoveTarget target;
};
// Re-rotates keys where the policy renumbers. On an error some of any sequence may have moved.
absl::Status Move(Backend& backend, std::span<const MoveTask> cohort);
// A cohort of one.
absl::Status Move(Backend& backend, const SequenceInput& input, const ResolvedPolicy& policy,
                  const KeepPlan& plan, const MoveTarget& target);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_PLAN_H_
