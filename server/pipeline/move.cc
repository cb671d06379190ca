// Moves kept tokens to their slots without deciding anything; renumbered keys turn on the way.
#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/rotation.h"

namespace kvern::pipeline {
namespace {

// Slots that are not moved must already hold what the plan wants there.
absl::Status CheckSlotsInPlace(const SequenceInput& input, const KeepPlan& plan,
                               int64_t first_slot) {
  for (int64_t row = 0; row < plan.keep.layers * plan.keep.kv_heads; ++row) {
    const int64_t layer = row / plan.keep.kv_heads, head = row % plan.keep.kv_heads;
    const int64_t unmoved = std::min(first_slot, plan.keep.Count(layer, head));
    for (int64_t slot = 0; slot < unmoved; ++slot) {
      const int32_t token = plan.keep.Row(layer, head)[slot];
      const int32_t position = plan.kept_positions[row * plan.max_kept + slot];
      if (token == slot && input.Position(layer, head, token) == position) continue;
      return absl::InternalError(absl::StrCat("move: got token ", token, " for unmoved slot ", slot,
                                              " at position ", position,
                                              ", want the token and position it has"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Move(Backend& backend, const SequenceInput& input, const ResolvedPolicy& policy,
                  const KeepPlan& plan, const MoveTarget& target) {
  KVERN_CHECK(target.keys.size() == input.keys.size());
  KVERN_CHECK(target.values.size() == input.values.size());
  KVERN_RETURN_IF_ERROR(CheckSlotsInPlace(input, plan, target.first_slot));
  std::optional<RotationTable> from, to;
  if (policy.positions == PositionMode::kRenumber && plan.max_kept > 0) {
    from = BuildRotation(input);
    to = BuildConsecutiveRotation(input.model->rope, plan.max_kept);
  }
  KVERN_RETURN_IF_ERROR(backend.Gather({.in = input.keys,
                                        .keep = &plan.keep,
                                        .out = target.keys,
                                        .first_slot = target.first_slot,
                                        .from = from ? &*from : nullptr,
                                        .to = to ? &*to : nullptr,
                                        .in_place = target.in_place}));
  return backend.Gather({.in = input.values,
                         .keep = &plan.keep,
                         .out = target.values,
                         .first_slot = target.first_slot,
                         .from = nullptr,
                         .to = nullptr,
                         .in_place = target.in_place});
}

}  // namespace kvern::pipeline
