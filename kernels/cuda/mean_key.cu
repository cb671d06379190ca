// Sum over count, rounded by the rule that all backends share.
#include "kernels/base/coding.h"
#include "kernels/cuda/key_total.cuh"
#include "kernels/cuda/mean_key.h"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) MeanKeyKernel(MeanKeyParams params) {
  const HeadRow row = params.rows.rows[blockIdx.x];
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  const TileSums tiles = {params.sums, params.counts, row.first_tile, TilesOf(row), head_dim};
  const int32_t count = CountOf(tiles);
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < head_dim; d += kThreads) {
    params.mean[int64_t{blockIdx.x} * head_dim + d] = RoundedMean(TotalOf(tiles, d), count);
  }
}

}  // namespace

cudaError_t LaunchMeanKey(const MeanKeyParams& params, cudaStream_t stream) {
  return Launch(&MeanKeyKernel, {params.rows.count, kThreads}, params, stream);
}

}  // namespace kvern::cuda
