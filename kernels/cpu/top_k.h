// Selection of the best candidates. The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_TOP_K_H_
#define KVERN_KERNELS_CPU_TOP_K_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status TopK(Runner& runner, const TopKArgs& args, KeepList* keep);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_TOP_K_H_
