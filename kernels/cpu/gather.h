// Moves kept rows to their new slots. The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_GATHER_H_
#define KVERN_KERNELS_CPU_GATHER_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status Gather(Runner& runner, const GatherArgs& args);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_GATHER_H_
