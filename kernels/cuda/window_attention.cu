// What tiles found becomes one value per row and query; shares are pooled over tokens and reduced.
#include "kernels/cuda/row.cuh"
#include "kernels/cuda/softmax.cuh"
#include "kernels/cuda/window_attention.h"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 256;

__device__ inline int32_t TilesOf(const HeadRow& row) {
  return (row.row_tokens + kTile - 1) / kTile;
}

// A thread per query, tiles in order.
template <bool kSum>
__global__ void __launch_bounds__(kThreads) CombineKernel(WindowAttentionParams params) {
  const HeadRow row = params.rows.rows[blockIdx.x];
  const int32_t queries = params.group * params.window;
  double* const out = kSum ? params.sums : params.largest;
  for (int32_t q = static_cast<int32_t>(threadIdx.x); q < queries; q += kThreads) {
    double value = kSum ? 0.0 : -std::numeric_limits<double>::infinity();
    for (int32_t tile = 0; tile < TilesOf(row); ++tile) {
      const double of_tile = params.tiles[(row.first_tile + tile) * queries + q];
      value = kSum ? value + of_tile : Larger(value, of_tile);
    }
    out[int64_t{blockIdx.x} * queries + q] = value;
  }
}

// Window of `pool_width` tokens around each; outside is 0 for the average, nothing for the maximum.
// What has no attention to share does not take its neighbours' away.
__device__ inline double Pooled(const WindowAttentionParams& params, const double* shares,
                                int32_t g, int32_t prefix, int32_t token) {
  const auto at = [&](int32_t near) {
    const int64_t tile = near / kTile;
    return shares[(tile * params.group + g) * kTile + near % kTile];
  };
  const int32_t reach = params.pool_width / 2;
  double sum = 0;
  double largest = -std::numeric_limits<double>::infinity();
  for (int32_t near = token - reach; near <= token + reach; ++near) {
    if (near < 0 || near >= prefix) continue;
    const double share = at(near);
    if (share != share) continue;
    sum += share;
    largest = share > largest ? share : largest;
  }
  const double own = at(token);
  if (own != own) return own;
  return params.average ? sum / static_cast<double>(params.pool_width) : largest;
}

__global__ void __launch_bounds__(kThreads, 3) PoolKernel(WindowAttentionParams params) {
  const HeadRow row = params.rows.rows[blockIdx.x];
  const int32_t prefix = row.tokens > params.window ? row.tokens - params.window : 0;
  const double* shares = params.shares + row.first_tile * params.group * kTile;
  const ScoreRow scores = params.scores[blockIdx.x];
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < row.row_tokens;
       token += kThreads) {
    float score = NoScore();
    if (token < prefix) {
      double reduced = params.mean_of_group ? 0.0 : -std::numeric_limits<double>::infinity();
      for (int32_t g = 0; g < params.group; ++g) {
        const double pooled = Pooled(params, shares, g, prefix, token);
        if (params.mean_of_group) {
          reduced += pooled;
        } else {
          reduced = pooled > reduced || pooled != pooled ? pooled : reduced;
        }
      }
      score =
          ScoreFrom(params.mean_of_group ? reduced / static_cast<double>(params.group) : reduced);
    }
    scores.data[token * scores.stride] = score;
  }
}

}  // namespace

cudaError_t LaunchWindowLargest(const WindowAttentionParams& params, cudaStream_t stream) {
  return Launch(&CombineKernel<false>, {params.rows.count, kThreads}, params, stream);
}
cudaError_t LaunchWindowTotals(const WindowAttentionParams& params, cudaStream_t stream) {
  return Launch(&CombineKernel<true>, {params.rows.count, kThreads}, params, stream);
}
cudaError_t LaunchWindowAttention(const WindowAttentionParams& params, cudaStream_t stream) {
  return Launch(&PoolKernel, {params.rows.count, kThreads}, params, stream);
}

}  // namespace kvern::cuda
