// The sums of a row's tiles, added in token order (ruling 6).
#ifndef KVERN_KERNELS_CUDA_KEY_TOTAL_CUH_
#define KVERN_KERNELS_CUDA_KEY_TOTAL_CUH_

#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/problem.h"

namespace kvern::cuda {

// What LaunchKeySums left of one row.
struct TileSums {
  const double* sums;     // [tiles, head_dim]
  const int32_t* counts;  // [tiles]
  int64_t first;          // tile of the row
  int32_t tiles;          // of the row
  int32_t head_dim;
};

__device__ inline int32_t TilesOf(const HeadRow& row) {
  return (row.row_tokens + kTile - 1) / kTile;
}
__device__ inline int32_t CountOf(const TileSums& row) {
  int32_t count = 0;
  for (int32_t tile = 0; tile < row.tiles; ++tile) count += row.counts[row.first + tile];
  return count;
}
__device__ inline double TotalOf(const TileSums& row, int32_t d) {
  double total = 0;
  for (int32_t tile = 0; tile < row.tiles; ++tile) {
    total += row.sums[(row.first + tile) * row.head_dim + d];
  }
  return total;
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_KEY_TOTAL_CUH_
