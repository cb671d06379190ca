// Sums over tokens in the order of ruling 6: 16 f64 lanes inside each 256-token tile (lane = token
// mod 16), the tree 8, 4, 2, 1, then tiles in order. Half a warp owns a tile, a thread a lane, so
// that the 16 threads read 16 neighbouring tokens. As TokenSum and SpreadOf of ref/rows.h.
#ifndef KVERN_KERNELS_CUDA_TOKEN_SUM_CUH_
#define KVERN_KERNELS_CUDA_TOKEN_SUM_CUH_

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/base/lanes.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/problem.h"

namespace kvern::cuda {

// The tree over 16 lanes, one per thread of a half warp; all 16 get the sum. By whole warps.
__device__ inline double HalfWarpTreeSum(double lane) {
  KVERN_UNROLL
  for (int half = kLanes / 2; half > 0; half /= 2) {
    lane += __shfl_xor_sync(kAllLanes, lane, half);
  }
  return lane;
}
__device__ inline int32_t HalfWarpCount(int32_t lane) {
  KVERN_UNROLL
  for (int half = kLanes / 2; half > 0; half /= 2) {
    lane += __shfl_xor_sync(kAllLanes, lane, half);
  }
  return lane;
}

struct TokenTotal {  // no initialisers: it lives in shared memory
  double sum;
  int32_t count;
};

// Sum over the tokens of one row by a block of kSumThreads; every thread gets it. `term(token,
// &lane)` adds a token to its lane and returns 1, or leaves it alone and returns 0.
inline constexpr int kSumThreads = 256;
inline constexpr int kSumTiles = kSumThreads / kLanes;  // tiles in one round

template <class Term>
__device__ inline TokenTotal BlockTokenSum(int32_t tokens, TokenTotal* tiles, Term term) {
  const int lane_of_tile = static_cast<int>(threadIdx.x) % kLanes;
  const int tile_of_round = static_cast<int>(threadIdx.x) / kLanes;
  TokenTotal total = {0, 0};
  for (int32_t round = 0; round < tokens; round += kSumTiles * kTile) {
    const int32_t first = round + tile_of_round * kTile + lane_of_tile;
    double lane = 0;
    int32_t count = 0;
    KVERN_UNROLL
    for (int i = 0; i < kTile / kLanes; ++i) {
      const int32_t token = first + i * kLanes;
      if (token < tokens) count += term(token, &lane);
    }
    lane = HalfWarpTreeSum(lane);
    count = HalfWarpCount(count);
    if (lane_of_tile == 0) tiles[tile_of_round] = {lane, count};
    __syncthreads();
    for (int tile = 0; tile < kSumTiles && round + tile * kTile < tokens; ++tile) {
      total.sum += tiles[tile].sum;
      total.count += tiles[tile].count;
    }
    __syncthreads();
  }
  return total;
}

// Mean and biased standard deviation; both 0 without a finite candidate.
struct Spread {
  double mean = 0;
  double deviation = 0;
};
__device__ inline double MeanOf(const TokenTotal& total) {
  return total.count == 0 ? 0.0 : total.sum / static_cast<double>(total.count);
}
__device__ inline double DeviationOf(double squares, int32_t count) {
  return count == 0 ? 0.0 : sqrt(squares / static_cast<double>(count));
}
// 0 for a row without spread (ruling 7); what is not finite stays so.
__device__ inline double Standardise(const Spread& spread, double value) {
  if (!isfinite(value)) return std::numeric_limits<double>::quiet_NaN();
  constexpr double kSmallestDeviation = 1e-6;
  return spread.deviation < kSmallestDeviation ? 0.0 : (value - spread.mean) / spread.deviation;
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_TOKEN_SUM_CUH_
