// Scale, Blend and HideScores: one score at a time. The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_ELEMENTWISE_H_
#define KVERN_KERNELS_CPU_ELEMENTWISE_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status Scale(Runner& runner, float factor, ScoreView scores);
absl::Status Blend(Runner& runner, BlendKind kind, ConstScoreView scores, ScoreView accumulated);
absl::Status HideScores(Runner& runner, const HideScoresArgs& args);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_ELEMENTWISE_H_
