// ZScore of a cohort in one launch.
#include "kernels/cuda/z_score.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {

absl::Status ZScore(DeviceContext& device, std::span<const ZScoreArgs> cohort) {
  Op op(device, "z_score");
  std::vector<ScoreView> scores;
  std::vector<MaskView> candidates;
  std::vector<int32_t> tokens;
  for (const ZScoreArgs& args : cohort) {
    scores.push_back(args.scores);
    candidates.push_back(args.candidates);
    tokens.insert(tokens.end(), args.scores.shape[0] * args.scores.shape[1],
                  static_cast<int32_t>(args.scores.shape[2]));
  }
  ZScoreParams params;
  params.scores = op.AddScores(scores, Access::kReadWrite);
  params.candidates = op.AddMasks(candidates);
  params.tokens = op.Upload(tokens);
  params.rows = static_cast<int64_t>(tokens.size());
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchZScore(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
