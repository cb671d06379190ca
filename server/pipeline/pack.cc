// Kept tokens become coded blocks: the table says where, the backend writes them.
#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/rotation.h"
#include "server/pipeline/token_masks.h"

namespace kvern::pipeline {
namespace {

// Rows to code and the angles they are rotated by.
struct EncodeSource {
  LayerRefs rows;
  const KeepList* keep = nullptr;
  const RotationTable* rotation = nullptr;
};

// Kept keys at their new angles, in memory of their own.
struct RenumberedKeys {
  std::vector<std::byte> memory;
  std::vector<KvRef> rows;
  KeepList keep;  // all of them
  RotationTable rotation;
};

class Packer {
 public:
  Packer(Backend& backend, const SequenceInput& input, const ResolvedPolicy& policy,
         const KeepPlan& plan)
      : backend_(backend), input_(input), policy_(policy), plan_(plan) {}

  absl::StatusOr<PackedKv> Pack(std::span<const Float16> frozen_mean) {
    PackedKv packed;
    if (!input_.keys.empty()) packed.dtype = input_.keys[0].dtype;
    int64_t total_bytes = 0;
    packed.table = PlanPackedTable(input_, policy_, plan_.counts.counts, &total_bytes);
    packed.blocks.resize(total_bytes);
    if (RemovesMean() || Renumbers()) KVERN_RETURN_IF_ERROR(Rotate());
    if (RemovesMean()) {
      KVERN_ASSIGN_OR_RETURN(packed.mean_key, MeanKey(frozen_mean));
    }

    EncodeSource keys{input_.keys, &plan_.keep, rotation_ ? &*rotation_ : nullptr};
    RenumberedKeys renumbered;
    if (Renumbers()) {
      KVERN_RETURN_IF_ERROR(Renumber(&renumbered));
      keys = {renumbered.rows, &renumbered.keep, &renumbered.rotation};
    }
    KVERN_RETURN_IF_ERROR(Encode(keys, Role::kKey, &packed));
    KVERN_RETURN_IF_ERROR(Encode({input_.values, &plan_.keep, nullptr}, Role::kValue, &packed));
    return packed;
  }

 private:
  bool RemovesMean() const {
    return (policy_.codecs.k.flags & kFlagRopeMean) != 0 && input_.Tokens() > 0;
  }
  bool Renumbers() const {
    return policy_.positions == PositionMode::kRenumber && input_.Tokens() > 0;
  }

  absl::Status Rotate() {
    if (!RopeKnown(input_)) {
      return WithReason(absl::FailedPreconditionError(
                            "rope: got none, want inverse frequencies to remove the mean key or "
                            "to renumber"),
                        "ROPE_UNKNOWN");
    }
    rotation_ = BuildRotation(input_);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<Float16>> MeanKey(std::span<const Float16> frozen) {
    const int64_t head_dim = input_.model->head_dim;
    const size_t size = input_.Layers() * input_.KvHeads() * head_dim;
    if (!frozen.empty()) {
      if (frozen.size() == size) return std::vector<Float16>(frozen.begin(), frozen.end());
      return absl::InvalidArgumentError(absl::StrCat("mean key: got ", frozen.size(),
                                                     " values, want ", size,
                                                     " (layers * kv_heads * head_dim)"));
    }
    std::vector<Float16> mean(size);
    const TokenMask counted = AliveAfter(input_, policy_.sink_tokens);
    KVERN_RETURN_IF_ERROR(
        backend_.MeanKey({.keys = input_.keys, .rotation = &*rotation_, .counted = counted.View()},
                         DenseView(mean.data(), input_.Layers(), input_.KvHeads(), head_dim)));
    return mean;
  }

  absl::Status Renumber(RenumberedKeys* out) {
    const int64_t kept = plan_.max_kept, head_dim = input_.model->head_dim;
    const DType dtype = input_.keys[0].dtype;
    const int64_t layer_bytes = input_.KvHeads() * kept * head_dim * SizeOf(dtype);
    out->memory.resize(input_.Layers() * layer_bytes);
    for (int64_t layer = 0; layer < input_.Layers(); ++layer) {
      out->rows.push_back(DenseKvRef(dtype, out->memory.data() + layer * layer_bytes,
                                     input_.KvHeads(), kept, head_dim));
    }
    out->rotation = BuildConsecutiveRotation(input_.model->rope, kept);
    out->keep = plan_.keep;
    for (int64_t layer = 0; layer < input_.Layers(); ++layer) {
      for (int64_t head = 0; head < input_.KvHeads(); ++head) {
        int32_t* slots = out->keep.Row(layer, head);
        std::iota(slots, slots + out->keep.Count(layer, head), 0);
      }
    }
    return backend_.Gather({.in = input_.keys,
                            .keep = &plan_.keep,
                            .out = out->rows,
                            .from = &*rotation_,
                            .to = &out->rotation});
  }

  absl::Status Encode(const EncodeSource& source, Role role, PackedKv* packed) {
    const auto first_value = std::find_if(
        packed->table.begin(), packed->table.end(),
        [](const PackedRow& row) { return row.role == static_cast<int64_t>(Role::kValue); });
    const size_t keys = first_value - packed->table.begin();
    const std::span<const PackedRow> table(packed->table);
    const bool is_key = role == Role::kKey;
    TensorView<const Float16, 3> mean;
    if (is_key && !packed->mean_key.empty()) {
      mean = DenseView(static_cast<const Float16*>(packed->mean_key.data()), input_.Layers(),
                       input_.KvHeads(), int64_t{input_.model->head_dim});
    }
    return backend_.Encode({.rows = source.rows,
                            .keep = source.keep,
                            .table = is_key ? table.first(keys) : table.subspan(keys),
                            .mean_key = mean,
                            .rotation = source.rotation,
                            .packed = packed->blocks},
                           is_key ? &packed->k_counts : &packed->v_counts);
  }

  Backend& backend_;
  const SequenceInput& input_;
  const ResolvedPolicy& policy_;
  const KeepPlan& plan_;
  std::optional<RotationTable> rotation_;  // of the source slots
};

}  // namespace

absl::StatusOr<PackedKv> Pack(Backend& backend, const SequenceInput& input,
                              const ResolvedPolicy& policy, const KeepPlan& plan,
                              std::span<const Float16> frozen_mean) {
  return Packer(backend, input, policy, plan).Pack(frozen_mean);
}

}  // namespace kvern::pipeline
