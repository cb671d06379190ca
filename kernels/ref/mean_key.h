// Mean un-rotated key of every (layer, kv_head). The contract is Backend's (kernels/backend.h).
// `stop` may be null.
#ifndef KVERN_KERNELS_REF_MEAN_KEY_H_
#define KVERN_KERNELS_REF_MEAN_KEY_H_

#include "kernels/backend.h"

namespace kvern::ref {

absl::Status MeanKey(const StopCheck* stop, const MeanKeyArgs& args, TensorView<Float16, 3> mean);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_MEAN_KEY_H_
