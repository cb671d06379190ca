// A token whose value resembles one already picked adds little, so picks pay for their likeness
// (alpha, retention.md 9.1).
#include <vector>

#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/selector.h"
#include "server/pipeline/selectors/sharing.h"

namespace kvern::pipeline {
namespace {

class DiverseSelector final : public Selector {
 public:
  explicit DiverseSelector(const StageParams& params)
      : sharing_(SharingFrom(params)),
        lambda_(static_cast<float>(params.Float("lambda"))),
        scale_(params.Enum("scale") == "minmax" ? ScoreScale::kMinMax : ScoreScale::kAsIs),
        tie_(params.Enum("tie") == "oldest" ? TieRule::kOldest : TieRule::kRecent) {}

  bool NeedsScores() const override { return true; }
  ShapeClass EqualCountsClass() const override { return ClassOf(sharing_.share); }
  absl::Status Select(Backend& backend, std::span<const SelectInput> cohort) const override {
    KVERN_RETURN_IF_ERROR(ShareScores(backend, sharing_, cohort));
    ScratchVector<DiverseArgs> args;
    for (const SelectInput& input : cohort) {
      args.push_back({.scores = input.scores,
                      .candidates = input.candidates,
                      .forced = input.forced,
                      .values = input.sequence->values,
                      .lambda = lambda_,
                      .scale = scale_,
                      .tie = tie_,
                      .groups = GroupsOf(sharing_.share, input.keep->layers, input.keep->kv_heads),
                      .keep = input.keep});
    }
    return backend.Diverse(args);
  }

 private:
  const Sharing sharing_;
  const float lambda_;
  const ScoreScale scale_;
  const TieRule tie_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Selector>> MakeDiverseSelector(const StageParams& params) {
  return std::make_unique<DiverseSelector>(params);
}

}  // namespace kvern::pipeline
