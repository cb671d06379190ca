// Reading rows of keys and values. Two neighbouring threads share a row: in every step of 16
// elements the even one owns elements 0-7 and virtual lanes 0-7, the odd one 8-15. A thread's eight
// elements of bf16 or f16 are one 16-byte load, a pair fills a 32-byte sector, and each lane sees
// its elements in index order, as ruling 6 wants.
#ifndef KVERN_KERNELS_CUDA_ROW_CUH_
#define KVERN_KERNELS_CUDA_ROW_CUH_

#include <cmath>
#include <limits>

#include "kernels/base/dtype.h"
#include "kernels/base/lanes.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/problem.h"

namespace kvern::cuda {

inline constexpr int kOctet = 8;  // elements of a thread in one step
inline constexpr int kStep = 16;  // elements of a pair in one step

// Eight consecutive elements, widened exactly. `row` points to element 0 of the row, `first` is a
// multiple of 8 below head_dim.
template <class T, RowAccess access>
__device__ inline void LoadOctet(const std::byte* row, int64_t dim_stride, int32_t first,
                                 float (&x)[kOctet]) {
  if constexpr (access == RowAccess::kVector) {
    constexpr int kVectors = static_cast<int>(sizeof(T) * kOctet / sizeof(Vector16));
    Vector16 bits[kVectors];
    KVERN_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      bits[v] = LoadReadOnly(row + int64_t{first} * sizeof(T) + v * sizeof(Vector16));
    }
    T values[kOctet];
    memcpy(values, bits, sizeof(values));
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) x[e] = ToFloat(values[e]);
  } else {
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      x[e] = ToFloat(*reinterpret_cast<const T*>(row + (first + e) * dim_stride));
    }
  }
}

// The tree 8, 4, 2, 1 over 16 lanes of which this thread holds eight and its pair the others. Both
// get the sum. All threads of the warp take part.
template <class S>
__device__ inline S PairTreeSum(const S (&lanes)[kOctet]) {
  S sum[kOctet];
  KVERN_UNROLL
  for (int i = 0; i < kOctet; ++i) sum[i] = lanes[i] + __shfl_xor_sync(kAllLanes, lanes[i], 1);
  KVERN_UNROLL
  for (int half = kOctet / 2; half > 0; half /= 2) {
    KVERN_UNROLL
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

__device__ inline float NoScore() { return std::numeric_limits<float>::quiet_NaN(); }

// The one rounding of a score; what is not finite has no score.
__device__ inline float ScoreFrom(double value) {
  const float score = static_cast<float>(value);
  return isfinite(score) ? score : NoScore();
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ROW_CUH_
