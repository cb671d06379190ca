// Equal scores, masks and counts give equal sets: so rows that share a set share these first.
#include "server/pipeline/selectors/sharing.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"

namespace kvern::pipeline {
namespace {

struct Row {
  int64_t layer;
  int64_t head;
};

bool SameRow(MaskView mask, Row a, Row b) {
  if (mask.At(a.layer, a.head) == mask.At(b.layer, b.head)) return true;
  for (int64_t token = 0; token < mask.shape[2]; ++token) {
    if (mask(a.layer, a.head, token) != mask(b.layer, b.head, token)) return false;
  }
  return true;
}

absl::Status CheckSame(const SelectInput& input, Row a, Row b) {
  const KeepList& keep = *input.keep;
  const int64_t count_a = keep.Count(a.layer, a.head), count_b = keep.Count(b.layer, b.head);
  if (count_a != count_b) {
    return absl::FailedPreconditionError(absl::StrCat(
        "share: got ", count_a, " tokens for layer ", a.layer, " head ", a.head, " and ", count_b,
        " for layer ", b.layer, " head ", b.head, ", want equal budgets where sets are shared"));
  }
  if (!SameRow(input.candidates, a, b) || !SameRow(input.forced, a, b)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "share: got different protected or cached tokens for layer ", a.layer, " head ", a.head,
        " and layer ", b.layer, " head ", b.head, ", want them equal where sets are shared"));
  }
  return absl::OkStatus();
}

absl::Status CheckGroups(const SelectInput& input,
                         const std::vector<std::vector<int64_t>>& groups) {
  const int64_t kv_heads = input.keep->kv_heads;
  for (const std::vector<int64_t>& group : groups) {
    for (const int64_t row : group) {
      const Row first{group[0] / kv_heads, group[0] % kv_heads};
      const absl::Status same = CheckSame(input, first, {row / kv_heads, row % kv_heads});
      if (!same.ok()) return WithReason(same, "SHAPE_CLASS");
    }
  }
  return absl::OkStatus();
}

}  // namespace

Sharing SharingFrom(const StageParams& params) {
  Sharing sharing;
  const std::string& share = params.Enum("share");
  if (share == "heads") sharing.share = Share::kHeads;
  if (share == "layers") sharing.share = Share::kLayers;
  if (share == "all") sharing.share = Share::kAll;
  if (params.Enum("reduce") == "max") sharing.reduce = GroupReduce::kMax;
  return sharing;
}

ShapeClass ClassOf(Share share) {
  if (share == Share::kAll) return ShapeClass::kS0;
  return share == Share::kHeads ? ShapeClass::kS1 : ShapeClass::kS2;
}

std::vector<std::vector<int64_t>> GroupsOf(Share share, int64_t layers, int64_t kv_heads) {
  std::vector<std::vector<int64_t>> groups;
  if (share == Share::kNone) return groups;
  if (share == Share::kHeads) groups.resize(layers);
  if (share == Share::kLayers) groups.resize(kv_heads);
  if (share == Share::kAll) groups.resize(1);
  for (int64_t row = 0; row < layers * kv_heads; ++row) {
    const int64_t group = share == Share::kHeads    ? row / kv_heads
                          : share == Share::kLayers ? row % kv_heads
                                                    : 0;
    groups[group].push_back(row);
  }
  return groups;
}

absl::Status ShareScores(Backend& backend, const Sharing& sharing,
                         std::span<const SelectInput> cohort) {
  if (sharing.share == Share::kNone) return absl::OkStatus();
  std::vector<std::vector<std::vector<int64_t>>> groups;
  groups.reserve(cohort.size());
  ScratchVector<ShareRowsArgs> args;
  for (const SelectInput& input : cohort) {
    groups.push_back(GroupsOf(sharing.share, input.keep->layers, input.keep->kv_heads));
    KVERN_RETURN_IF_ERROR(CheckGroups(input, groups.back()));
    args.push_back({&groups.back(), sharing.reduce, input.scores});
  }
  return backend.ShareRows(args);
}

}  // namespace kvern::pipeline
