// The launch of MeanKey after the sums over tiles.
#ifndef KVERN_KERNELS_CUDA_MEAN_KEY_H_
#define KVERN_KERNELS_CUDA_MEAN_KEY_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

struct MeanKeyParams {
  Rows rows;
  const double* sums = nullptr;     // [tiles, head_dim] of LaunchKeySums
  const int32_t* counts = nullptr;  // [tiles]
  Float16* mean = nullptr;          // out [rows, head_dim]
};

// A block per row.
cudaError_t LaunchMeanKey(const MeanKeyParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_MEAN_KEY_H_
