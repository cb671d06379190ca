// Mean un-rotated key of every (layer, kv_head). The contract is Backend's (kernels/backend.h).
#ifndef KVERN_KERNELS_CPU_MEAN_KEY_H_
#define KVERN_KERNELS_CPU_MEAN_KEY_H_

#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

absl::Status MeanKey(Runner& runner, const MeanKeyArgs& args, TensorView<Float16, 3> mean);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_MEAN_KEY_H_
