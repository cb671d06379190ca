// Standardises scores per (layer, kv_head). The contract is Backend's (kernels/backend.h). `stop`
// may be null.
#ifndef KVERN_KERNELS_REF_Z_SCORE_H_
#define KVERN_KERNELS_REF_Z_SCORE_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status ZScore(const StopCheck* stop, MaskView candidates, ScoreView scores);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_Z_SCORE_H_
