// Two rows per pair of threads: they read both together (row.cuh), then the even thread goes on
// with row 0 and the odd one with row 1. So thread i of a block ends with token i of its run, and
// every value that was read from shared memory serves two rows.
#ifndef KVERN_KERNELS_CUDA_ROW_PAIR_CUH_
#define KVERN_KERNELS_CUDA_ROW_PAIR_CUH_

#include <cstdint>

#include "kernels/cuda/row.cuh"

namespace kvern::cuda {

inline constexpr int kPairRows = 2;

struct RowPair {
  const std::byte* rows[kPairRows];
  int64_t dim_stride;  // bytes
};

// Rows of tokens `first`, `first + 1`; past `end` the last token stands in, whose result the caller
// drops. first <= end - 1 or end > 0.
__device__ inline RowPair PairAt(const KvLayer& layer, int32_t head, int32_t first, int32_t end) {
  const int32_t last = end - 1;
  return {{layer.Address(head, min(first, last)), layer.Address(head, min(first + 1, last))},
          layer.dim_stride};
}

__device__ inline bool IsOdd() { return threadIdx.x % 2 != 0; }
// The first token of this thread's pair, when thread i ends with token run.first + i.
__device__ inline int32_t FirstOfPair(int32_t run_first) {
  return run_first + static_cast<int32_t>(threadIdx.x & ~1u);
}

// The tree of PairTreeSum over the lanes of this thread's own row. All threads of the warp take
// part; one exchange serves both rows.
template <class S>
__device__ inline S OwnTreeSum(const S (&lanes)[kPairRows][kOctet]) {
  const bool odd = IsOdd();
  S sum[kOctet];
  KVERN_UNROLL
  for (int i = 0; i < kOctet; ++i) {
    const S mine = odd ? lanes[1][i] : lanes[0][i];
    const S other = odd ? lanes[0][i] : lanes[1][i];
    sum[i] = mine + __shfl_xor_sync(kAllLanes, other, 1);
  }
  KVERN_UNROLL
  for (int half = kOctet / 2; half > 0; half /= 2) {
    KVERN_UNROLL
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

// |row|_2 of this thread's own row.
template <class T, RowAccess access>
__device__ inline float OwnNorm(const RowPair& pair, int32_t head_dim) {
  float lanes[kPairRows][kOctet] = {};
  for (int32_t first = IsOdd() ? kOctet : 0; first < head_dim; first += kStep) {
    float x[kPairRows][kOctet];
    KVERN_UNROLL
    for (int r = 0; r < kPairRows; ++r) {
      LoadOctet<T, access>(pair.rows[r], pair.dim_stride, first, x[r]);
    }
    KVERN_UNROLL
    for (int r = 0; r < kPairRows; ++r) {
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) lanes[r][e] = fmaf(x[r][e], x[r][e], lanes[r][e]);
    }
  }
  return sqrtf(OwnTreeSum(lanes));
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ROW_PAIR_CUH_
