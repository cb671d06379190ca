// How many tokens the masks of a selection name, counted on the host, where masks lie.
#ifndef KVERN_KERNELS_CUDA_ROW_COUNTS_H_
#define KVERN_KERNELS_CUDA_ROW_COUNTS_H_

#include <cstdint>
#include <vector>

#include "kernels/base/tensor_view.h"

namespace kvern::cuda {

struct RowCounts {
  int32_t forced = 0;
  int32_t candidates = 0;  // that are not forced
};

// [layers * kv_heads] of both masks' shape.
std::vector<RowCounts> CountRows(MaskView candidates, MaskView forced);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ROW_COUNTS_H_
