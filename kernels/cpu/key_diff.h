// KeyDiff scores: how far a key points from the mean direction. The contract is Backend's
// (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_KEY_DIFF_H_
#define KVERN_KERNELS_CPU_KEY_DIFF_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status KeyDiff(Runner& runner, const KeyDiffArgs& args);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_KEY_DIFF_H_
