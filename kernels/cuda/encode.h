// The launch of Encode.
#ifndef KVERN_KERNELS_CUDA_ENCODE_H_
#define KVERN_KERNELS_CUDA_ENCODE_H_

#include "kernels/cuda/coded_row.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

// EncodeCounts of one row of a packed table, its tokens added in order.
struct RowCounts {
  int64_t nonfinite = 0;
  double squared_error = 0;
  double squared_norm = 0;
};

struct EncodeParams {
  CodingParams coding;
  RowCounts* counts = nullptr;  // out, one per row
};

cudaError_t LaunchEncode(const EncodeParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ENCODE_H_
