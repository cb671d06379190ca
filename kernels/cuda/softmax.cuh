// Softmax over the tokens of one row in f64, blind to what is not finite. As ref/soft_max.h.
#ifndef KVERN_KERNELS_CUDA_SOFTMAX_CUH_
#define KVERN_KERNELS_CUDA_SOFTMAX_CUH_

#include <cstdint>
#include <limits>

#include "kernels/base/math.h"
#include "kernels/cuda/device.h"

namespace kvern::cuda {

__device__ inline double Larger(double a, double b) { return b > a ? b : a; }

// Largest over the block, for every thread; `of_warps` [warps] is shared memory. Holds a barrier
// before it reads and one after.
template <int warps>
__device__ inline double BlockLargest(double value, double* of_warps) {
  KVERN_UNROLL
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = Larger(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  for (int warp = 0; warp < warps; ++warp) value = Larger(value, of_warps[warp]);
  __syncthreads();
  return value;
}

// NaN for a logit that is not finite.
__device__ inline double Probability(double logit, double largest, double sum) {
  if (!isfinite(logit)) return std::numeric_limits<double>::quiet_NaN();
  return Exp(logit - largest) * (1.0 / sum);
}
__device__ inline double LogSum(double largest, double sum) { return largest + Log(sum); }

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_SOFTMAX_CUH_
