// |row| of every token. The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_ROW_NORMS_H_
#define KVERN_KERNELS_CPU_ROW_NORMS_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status RowNorms(Runner& runner, LayerRefs rows, ScoreView norms);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_ROW_NORMS_H_
