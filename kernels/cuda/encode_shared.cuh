// What a block of threads of encode shares, and the sums of its tokens in token order.
#ifndef KVERN_KERNELS_CUDA_ENCODE_SHARED_CUH_
#define KVERN_KERNELS_CUDA_ENCODE_SHARED_CUH_

#include <cstdint>

#include "kernels/cuda/coding.cuh"
#include "kernels/cuda/encode.h"
#include "kernels/cuda/sfv.cuh"

namespace kvern::cuda {

// All in shared memory.
struct EncodeShared {
  float* mean;  // [head_dim], filled with rm only
  uint32_t* cells;
  float* levels;
  float* norms;   // [kPackedBlockTokens] |x|^2
  float* errors;  // [kPackedBlockTokens] |x - decode(encode(x))|^2
  unsigned* nonfinite;
  SfvShared sfv = {};  // of the path that takes any codec
};
#define KVERN_ENCODE_SHARED(name, mean)                                  \
  KVERN_SHARED(uint32_t, shared_cells, kLm4Cells);                       \
  KVERN_SHARED(float, shared_levels, 16);                                \
  KVERN_SHARED(float, shared_norms, kPackedBlockTokens);                 \
  KVERN_SHARED(float, shared_errors, kPackedBlockTokens);                \
  KVERN_SHARED(unsigned, shared_nonfinite, 1);                           \
  const EncodeShared name = {mean,         shared_cells,  shared_levels, \
                             shared_norms, shared_errors, shared_nonfinite}

// All threads of the block; a barrier has to follow.
__device__ inline void Prepare(const CodingParams& params, const Block& block,
                               const EncodeShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared.cells[thread] = params.lm4.cells[thread];
  static_assert(kLm4Cells == kCodingThreads);
  if (thread < 16) shared.levels[thread] = params.lm4.levels[thread];
  if (thread == 0) *shared.nonfinite = 0;
  if (thread < kPackedBlockTokens) {
    shared.norms[thread] = 0;
    shared.errors[thread] = 0;
  }
  if (block.row.rope_mean) LoadMean(block, params.shape.head_dim, shared.mean);
}

// After a barrier. Two warps add at the same time.
__device__ inline void WriteCounts(const Block& block, const EncodeShared& shared,
                                   RowCounts* counts) {
  const bool norms = threadIdx.x == 0;
  if (!norms && threadIdx.x != kWarp) return;
  const float* from = norms ? shared.norms : shared.errors;
  double sum = 0;
  for (int token = 0; token < block.row.tokens; ++token) sum += from[token];
  if (norms) {
    counts->squared_norm = sum;
    counts->nonfinite = *shared.nonfinite;
  } else {
    counts->squared_error = sum;
  }
}

__device__ inline float Sanitised(float value) {
  return value != value ? 0.0f : copysignf(kLargestCoded, value);
}

// Adding it rounds a float of magnitude below 2^22 to an integer, which the low bits then show.
inline constexpr float kRoundingMagic = 0x1.8p23f;

// The integer nearest to a value, ties to even, at most kI8Levels from 0; -0 may become 0. Its
// lowest byte in two's complement is that of the bits of `shifted`.
struct I8Code {
  float shifted;
  float code;
};
__device__ inline I8Code I8CodeOf(float value) {
  const float shifted = fminf(fmaxf(value, -kI8Levels), kI8Levels) + kRoundingMagic;
  return {shifted, shifted - kRoundingMagic};
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ENCODE_SHARED_CUH_
