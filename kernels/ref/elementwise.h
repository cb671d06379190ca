// Scale, Blend and HideScores: one score at a time. The contract is Backend's (kernels/backend.h).
// `stop` may be null.
#ifndef KVERN_KERNELS_REF_ELEMENTWISE_H_
#define KVERN_KERNELS_REF_ELEMENTWISE_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status Scale(const StopCheck* stop, float factor, ScoreView scores);
absl::Status Blend(const StopCheck* stop, BlendKind kind, ConstScoreView scores,
                   ScoreView accumulated);
absl::Status HideScores(const StopCheck* stop, const HideScoresArgs& args);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_ELEMENTWISE_H_
