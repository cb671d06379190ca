// The slope of a query head's logit at the reference key, in f64: with it the low-rank form of a
// centred key differs from that of the key by a constant. As ref/expected_attention.cc.
#ifndef KVERN_KERNELS_CUDA_EXPECTED_SLOPE_CUH_
#define KVERN_KERNELS_CUDA_EXPECTED_SLOPE_CUH_

#include <cstdint>

#include "kernels/cuda/token_sum.cuh"

namespace kvern::cuda {

inline constexpr int kSlopeThreads = 128;  // of the block
inline constexpr int kSlopeHalfWarps = kSlopeThreads / kLanes;
inline constexpr int kSlopeDims = 1024 / kSlopeThreads;  // coordinates of one thread, at most

// Moments of one query head.
struct HeadMoments {
  const double* linear;
  const double* factors;  // [rank, head_dim]
  const double* diagonal;
  int32_t rank;
  int32_t head_dim;
};

// twice[j] = 2 <factor first + j, reference>: half a warp per factor, a thread per lane.
__device__ inline void TwiceImages(const HeadMoments& moments, const float* reference,
                                   int32_t first, double* twice) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int32_t j = static_cast<int32_t>(threadIdx.x) / kLanes;
  const double* factor = moments.factors + int64_t{first + j} * moments.head_dim;
  double sum = 0;
  for (int32_t d = lane; first + j < moments.rank && d < moments.head_dim; d += kLanes) {
    sum = fma(factor[d], double{reference[d]}, sum);
  }
  sum = HalfWarpTreeSum(sum);
  if (lane == 0) twice[j] = 2.0 * sum;
}

// slope [head_dim] by the whole block, a thread for its coordinates. `twice` [kSlopeHalfWarps] is
// shared memory. The caller syncs before it reads a slope.
__device__ inline void WriteSlope(const HeadMoments& moments, const float* reference, double* twice,
                                  float* slope) {
  const auto own = static_cast<int32_t>(threadIdx.x);
  double sums[kSlopeDims];
  KVERN_UNROLL
  for (int i = 0; i < kSlopeDims; ++i) {
    const int32_t d = own + i * kSlopeThreads;
    sums[i] = d < moments.head_dim ? moments.linear[d] : 0.0;
  }
  for (int32_t first = 0; first < moments.rank; first += kSlopeHalfWarps) {
    TwiceImages(moments, reference, first, twice);
    __syncthreads();
    for (int32_t j = 0; j < min(kSlopeHalfWarps, moments.rank - first); ++j) {
      const double* factor = moments.factors + int64_t{first + j} * moments.head_dim;
      KVERN_UNROLL
      for (int i = 0; i < kSlopeDims; ++i) {
        const int32_t d = own + i * kSlopeThreads;
        if (d < moments.head_dim) sums[i] = fma(twice[j], factor[d], sums[i]);
      }
    }
    __syncthreads();
  }
  KVERN_UNROLL
  for (int i = 0; i < kSlopeDims; ++i) {
    const int32_t d = own + i * kSlopeThreads;
    if (d >= moments.head_dim) continue;
    slope[d] = static_cast<float>(fma(2.0 * moments.diagonal[d], double{reference[d]}, sums[i]));
  }
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_EXPECTED_SLOPE_CUH_
