// Kept tokens become coded blocks: the table says where, the backend writes them.
#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/rotation.h"
#include "server/pipeline/token_masks.h"

namespace kvern::pipeline {
namespace {

// Kept keys at their new angles, in memory of the backend.
struct RenumberedKeys {
  Buffer memory;
  std::vector<KvRef> rows;
  KeepList keep;  // all of them
  std::shared_ptr<const RotationTable> rotation;
};

absl::Status CheckRope(const SequenceInput& input) {
  if (RopeKnown(input)) return absl::OkStatus();
  return WithReason(absl::FailedPreconditionError(
                        "rope: got none, want inverse frequencies to remove the mean key or to "
                        "renumber"),
                    "ROPE_UNKNOWN");
}

// One sequence of a cohort on its way into blocks.
class Packing {
 public:
  explicit Packing(const PackTask& task) : task_(task) {}

  // Table, room and angles; a frozen mean is taken over.
  absl::Status Begin(RotationTables* rotations) {
    const SequenceInput& input = Input();
    if (!input.keys.empty()) packed_.dtype = input.keys[0].dtype;
    MakeRoom();
    if (!RemovesMean() && !Renumbers()) return absl::OkStatus();
    KVERN_RETURN_IF_ERROR(CheckRope(input));
    rotation_ = task_.plan->rotation != nullptr ? task_.plan->rotation : rotations->Of(input);
    if (Renumbers()) {
      renumbered_.rotation = rotations->OfConsecutive(input.model->rope, task_.plan->max_kept);
    }
    return RemovesMean() ? TakeFrozenMean() : absl::OkStatus();
  }

  bool MeasuresMean() const { return RemovesMean() && task_.frozen_mean.empty(); }
  MeanKeyArgs MeanKey() {
    counted_ = AliveAfter(Input(), task_.policy->sink_tokens);
    return {.keys = Input().keys,
            .rotation = rotation_.get(),
            .counted = counted_.View(),
            .mean = DenseView(packed_.mean_key.data(), Input().Layers(), Input().KvHeads(),
                              int64_t{Input().model->head_dim})};
  }

  bool Renumbers() const {
    return task_.policy->positions == PositionMode::kRenumber && Input().Tokens() > 0;
  }
  // The turned keys must live until the encoding ends.
  absl::StatusOr<GatherArgs> Renumber(Backend& backend);

  EncodeArgs EncodeKeys() {
    EncodeArgs args = Coded(Role::kKey);
    args.rows = Renumbers() ? LayerRefs(renumbered_.rows) : LayerRefs(Input().keys);
    args.keep = Renumbers() ? &renumbered_.keep : &task_.plan->keep;
    args.rotation = Renumbers() ? renumbered_.rotation.get() : rotation_.get();
    if (!packed_.mean_key.empty()) {
      args.mean_key =
          DenseView(static_cast<const Float16*>(packed_.mean_key.data()), Input().Layers(),
                    Input().KvHeads(), int64_t{Input().model->head_dim});
    }
    args.counts = &packed_.k_counts;
    return args;
  }
  EncodeArgs EncodeValues() {
    EncodeArgs args = Coded(Role::kValue);
    args.rows = Input().values;
    args.keep = &task_.plan->keep;
    args.counts = &packed_.v_counts;
    return args;
  }

  PackedKv Finish() { return std::move(packed_); }

 private:
  const SequenceInput& Input() const { return *task_.input; }
  void MakeRoom() {
    if (task_.room != nullptr) return;
    int64_t total_bytes = 0;
    packed_.table =
        PlanPackedTable(Input(), *task_.policy, task_.plan->counts.counts, &total_bytes);
    packed_.blocks.resize(total_bytes);
  }
  bool RemovesMean() const {
    return (task_.policy->codecs.k.flags & kFlagRopeMean) != 0 && Input().Tokens() > 0;
  }

  absl::Status TakeFrozenMean() {
    const std::span<const Float16> frozen = task_.frozen_mean;
    const size_t size = Input().Layers() * Input().KvHeads() * Input().model->head_dim;
    if (!frozen.empty() && frozen.size() != size) {
      return absl::InvalidArgumentError(absl::StrCat("mean key: got ", frozen.size(),
                                                     " values, want ", size,
                                                     " (layers * kv_heads * head_dim)"));
    }
    packed_.mean_key.assign(frozen.begin(), frozen.end());
    packed_.mean_key.resize(size);
    return absl::OkStatus();
  }

  // Room and the rows of one role of the table, where keys come first.
  EncodeArgs Coded(Role role) {
    const std::span<const PackedRow> table = task_.room ? task_.room->table : packed_.table;
    const auto first_value = std::find_if(table.begin(), table.end(), [](const PackedRow& row) {
      return row.role == static_cast<int64_t>(Role::kValue);
    });
    const size_t keys = first_value - table.begin();
    EncodeArgs args;
    args.table = role == Role::kKey ? table.first(keys) : table.subspan(keys);
    args.packed = task_.room ? task_.room->blocks : std::span(packed_.blocks);
    return args;
  }

  const PackTask task_;
  PackedKv packed_;
  TokenMask counted_;
  std::shared_ptr<const RotationTable> rotation_;  // of the source slots
  RenumberedKeys renumbered_;
};

absl::StatusOr<GatherArgs> Packing::Renumber(Backend& backend) {
  const SequenceInput& input = Input();
  const KeepPlan& plan = *task_.plan;
  const int64_t kept = plan.max_kept, head_dim = input.model->head_dim;
  const DType dtype = input.keys[0].dtype;
  const int64_t layer_bytes = input.KvHeads() * kept * head_dim * SizeOf(dtype);
  KVERN_ASSIGN_OR_RETURN(renumbered_.memory, backend.Allocate(input.Layers() * layer_bytes));
  for (int64_t layer = 0; layer < input.Layers(); ++layer) {
    renumbered_.rows.push_back(DenseKvRef(dtype, renumbered_.memory.data() + layer * layer_bytes,
                                          input.KvHeads(), kept, head_dim));
  }
  renumbered_.keep = plan.keep;
  for (int64_t layer = 0; layer < input.Layers(); ++layer) {
    for (int64_t head = 0; head < input.KvHeads(); ++head) {
      int32_t* slots = renumbered_.keep.Row(layer, head);
      std::iota(slots, slots + renumbered_.keep.Count(layer, head), 0);
    }
  }
  return GatherArgs{.in = input.keys,
                    .keep = &plan.keep,
                    .out = renumbered_.rows,
                    .from = rotation_.get(),
                    .to = renumbered_.rotation.get()};
}

}  // namespace

absl::StatusOr<std::vector<PackedKv>> Pack(Backend& backend, std::span<const PackTask> cohort) {
  std::vector<Packing> packings(cohort.begin(), cohort.end());
  RotationTables rotations;
  std::vector<MeanKeyArgs> means;
  std::vector<GatherArgs> turns;
  for (Packing& packing : packings) {
    KVERN_RETURN_IF_ERROR(packing.Begin(&rotations));
    if (packing.MeasuresMean()) means.push_back(packing.MeanKey());
    if (!packing.Renumbers()) continue;
    KVERN_ASSIGN_OR_RETURN(const GatherArgs turn, packing.Renumber(backend));
    turns.push_back(turn);
  }
  if (!means.empty()) KVERN_RETURN_IF_ERROR(backend.MeanKey(means));
  if (!turns.empty()) KVERN_RETURN_IF_ERROR(backend.Gather(turns));
  std::vector<EncodeArgs> encodes;
  for (Packing& packing : packings) {
    encodes.push_back(packing.EncodeKeys());
    encodes.push_back(packing.EncodeValues());
  }
  KVERN_RETURN_IF_ERROR(backend.Encode(encodes));
  std::vector<PackedKv> packed;
  for (Packing& packing : packings) packed.push_back(packing.Finish());
  return packed;
}

absl::StatusOr<PackedKv> Pack(Backend& backend, const SequenceInput& input,
                              const ResolvedPolicy& policy, const KeepPlan& plan,
                              std::span<const Float16> frozen_mean) {
  const PackTask task = {&input, &policy, &plan, frozen_mean};
  KVERN_ASSIGN_OR_RETURN(std::vector<PackedKv> packed, Pack(backend, std::span(&task, 1)));
  return std::move(packed[0]);
}

}  // namespace kvern::pipeline
