// What a block of threads of decode shares, and the one rounding of a restored element.
#ifndef KVERN_KERNELS_CUDA_DECODE_SHARED_CUH_
#define KVERN_KERNELS_CUDA_DECODE_SHARED_CUH_

#include <limits>

#include "kernels/cuda/coding.cuh"
#include "kernels/cuda/decode.h"

namespace kvern::cuda {

// All in shared memory.
struct DecodeShared {
  float* mean;  // [head_dim], filled with rm only
  float* levels;
  uint32_t* sfv_words = nullptr;  // of the block's codec, on the path that takes any codec
};

// All threads of the block; a barrier has to follow.
__device__ inline void Prepare(const CodingParams& params, const Block& block,
                               const DecodeShared& shared) {
  if (threadIdx.x < 16) shared.levels[threadIdx.x] = params.lm4.levels[threadIdx.x];
  if (block.row.rope_mean) LoadMean(block, params.shape.head_dim, shared.mean);
}

// Every NaN becomes the same one; no f16 infinity is made. Rounding a number in any case, and
// choosing afterwards, leaves no branch per element.
template <class T>
__device__ inline T Rounded(float value) {
  const bool is_number = value == value;
  float number = is_number ? value : 0.0f;
  if constexpr (std::is_same_v<T, Float16>) {
    number = fminf(fmaxf(number, -kLargestCoded), kLargestCoded);
  }
  const T rounded = FromFloat<T>(number);
  const T nan = FromFloat<T>(std::numeric_limits<float>::quiet_NaN());
  return is_number ? rounded : nan;
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_DECODE_SHARED_CUH_
