// Moves kept tokens to their slots without deciding anything; renumbered keys turn on the way.
#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/reuse.h"
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

// Rows that were staged elsewhere are read from there: writing their old place then overwrites
// nothing that is still to be read.
bool SameMemory(LayerRefs in, LayerRefs out) {
  for (size_t layer = 0; layer < in.size(); ++layer) {
    if (in[layer].base == out[layer].base) return true;
  }
  return false;
}

// The keys and the values of one sequence; tables only where keys turn.
struct Tables {
  std::shared_ptr<const RotationTable> from, to;
};

Tables TablesOf(const MoveTask& task, RotationTables* rotations) {
  const KeepPlan& plan = *task.plan;
  if (task.policy->positions != PositionMode::kRenumber || plan.max_kept == 0) return {};
  return {plan.rotation != nullptr ? plan.rotation : rotations->Of(*task.input),
          rotations->OfConsecutive(task.input->model->rope, plan.max_kept)};
}

}  // namespace

absl::Status Move(Backend& backend, std::span<const MoveTask> cohort) {
  RotationTables rotations;
  ScratchVector<Tables> tables;  // the shared owners
  ScratchVector<GatherArgs> in_place, elsewhere;
  for (const MoveTask& task : cohort) {
    const SequenceInput& input = *task.input;
    const MoveTarget& target = task.target;
    KVERN_CHECK(target.keys.size() == input.keys.size());
    KVERN_CHECK(target.values.size() == input.values.size());
    KVERN_RETURN_IF_ERROR(CheckSlotsInPlace(input, *task.plan, target.first_slot));
    tables.push_back(TablesOf(task, &rotations));
    GatherArgs args = {.in = input.keys,
                       .keep = &task.plan->keep,
                       .out = target.keys,
                       .first_slot = target.first_slot,
                       .from = tables.back().from.get(),
                       .to = tables.back().to.get()};
    args.in_place = target.in_place && SameMemory(args.in, args.out);
    (args.in_place ? in_place : elsewhere).push_back(args);
    args.in = input.values;
    args.out = target.values;
    args.from = args.to = nullptr;
    args.in_place = target.in_place && SameMemory(args.in, args.out);
    (args.in_place ? in_place : elsewhere).push_back(args);
  }
  if (!elsewhere.empty()) KVERN_RETURN_IF_ERROR(backend.Gather(elsewhere));
  return in_place.empty() ? absl::OkStatus() : backend.Gather(in_place);
}

absl::Status Move(Backend& backend, const SequenceInput& input, const ResolvedPolicy& policy,
                  const KeepPlan& plan, const MoveTarget& target) {
  const MoveTask task = {&input, &policy, &plan, target};
  return Move(backend, std::span(&task, 1));
}

}  // namespace kvern::pipeline
