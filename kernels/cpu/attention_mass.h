// Scores from accumulated attention mass. The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_ATTENTION_MASS_H_
#define KVERN_KERNELS_CPU_ATTENTION_MASS_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status AttentionMass(Runner& runner, const AttentionMassArgs& args, ScoreView scores);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_ATTENTION_MASS_H_
