// alpha: selection with a diversity penalty (retention.md 9.1). The contract is Backend's
// (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_DIVERSE_H_
#define KVERN_KERNELS_CPU_DIVERSE_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status Diverse(Runner& runner, const DiverseArgs& args, KeepList* keep);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_DIVERSE_H_
