// Scale, Blend and HideScores of a cohort, one launch each.
#include "kernels/cuda/elementwise.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/score_views.h"

namespace kvern::cuda {

absl::Status Scale(DeviceContext& device, float factor, std::span<const ScoreView> cohort) {
  Op op(device, "scale");
  ScaleParams params;
  params.grid = AddScoreGrid(op, RowsOf(cohort), kElementwiseRun);
  params.scores = op.AddScores(cohort, Access::kReadWrite);
  params.factor = factor;
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchScale(params, op.stream()));
  return op.End();
}

absl::Status Blend(DeviceContext& device, std::span<const BlendArgs> cohort) {
  Op op(device, "blend");
  std::vector<ScoreView> scores;
  std::vector<ScoreView> accumulated;
  for (const BlendArgs& args : cohort) {
    scores.push_back(ReadOnly(args.scores));
    accumulated.push_back(args.accumulated);
  }
  BlendParams params;
  params.grid = AddScoreGrid(op, RowsOf(accumulated), kElementwiseRun);
  params.scores = op.AddScores(scores, Access::kRead);
  params.accumulated = op.AddScores(accumulated, Access::kReadWrite);
  params.sum = !cohort.empty() && cohort.front().kind == BlendKind::kSum;
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchBlend(params, op.stream()));
  return op.End();
}

absl::Status HideScores(DeviceContext& device, std::span<const HideScoresArgs> cohort) {
  Op op(device, "hide_scores");
  std::vector<ScoreView> scores;
  std::vector<MaskView> candidates;
  for (const HideScoresArgs& args : cohort) {
    scores.push_back(args.scores);
    candidates.push_back(args.candidates);
  }
  std::vector<int64_t> nan_candidates(cohort.size());
  HideScoresParams params;
  params.grid = AddScoreGrid(op, RowsOf(scores), kElementwiseRun);
  params.scores = op.AddScores(scores, Access::kReadWrite);
  params.candidates = op.AddMasks(candidates);
  params.nan_candidates = op.Result(std::span(nan_candidates));
  op.Clear(params.nan_candidates, static_cast<int64_t>(cohort.size() * sizeof(int64_t)));
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchHideScores(params, op.stream()));
  KVERN_RETURN_IF_ERROR(op.End());
  for (size_t i = 0; i < cohort.size(); ++i) *cohort[i].nan_candidates = nan_candidates[i];
  return absl::OkStatus();
}

}  // namespace kvern::cuda
