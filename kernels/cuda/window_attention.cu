// What the tiles found becomes weights; shares are pooled over tokens and reduced.
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
__global__ void __launch_bounds__(kThreads) WeightsKernel(WindowAttentionParams params) {
  const HeadRow row = params.rows.rows[blockIdx.x];
  const int32_t queries = params.group * params.window;
  for (int32_t q = static_cast<int32_t>(threadIdx.x); q < queries; q += kThreads) {
    const auto at = [&](int32_t tile) { return (row.first_tile + tile) * queries + q; };
    double largest = -std::numeric_limits<double>::infinity();
    for (int32_t tile = 0; tile < TilesOf(row); ++tile) {
      largest = Larger(largest, double{params.largest[at(tile)]});
    }
    const auto weight = [&](int32_t tile) {
      return Exp((double{params.largest[at(tile)]} - largest) * params.scale);
    };
    double sum = 0;
    for (int32_t tile = 0; tile < TilesOf(row); ++tile) {
      sum = fma(params.sums[at(tile)], weight(tile), sum);
    }
    for (int32_t tile = 0; tile < TilesOf(row); ++tile) {
      params.sums[at(tile)] = weight(tile) / sum;
    }
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

cudaError_t LaunchWindowWeights(const WindowAttentionParams& params, cudaStream_t stream) {
  return Launch(&WeightsKernel, {params.rows.count, kThreads}, params, stream);
}
cudaError_t LaunchWindowAttention(const WindowAttentionParams& params, cudaStream_t stream) {
  return Launch(&PoolKernel, {params.rows.count, kThreads}, params, stream);
}

}  // namespace kvern::cuda
