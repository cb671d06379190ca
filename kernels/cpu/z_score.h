// Standardises scores per (layer, kv_head). The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_Z_SCORE_H_
#define KVERN_KERNELS_CPU_Z_SCORE_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status ZScore(Runner& runner, MaskView candidates, ScoreView scores);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_Z_SCORE_H_
