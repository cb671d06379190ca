// Raw scores of a row become scores: z per query head in f64, then the mean or maximum of the
// group.
#include "kernels/cuda/row.cuh"
#include "kernels/cuda/token_sum.cuh"
#include "kernels/cuda/tri_attention.h"

namespace kvern::cuda {
namespace {

struct RawRow {
  const double* raw;  // of the row's first tile
  int32_t group;
  __device__ double At(int32_t head, int32_t token) const {
    const int64_t tile = token / kTile;
    return raw[(tile * group + head) * kTile + token % kTile];
  }
};

// Mean from the tiles' sums, deviation by a pass over the raw scores.
__device__ inline Spread SpreadOfHead(const TriAttentionParams& params, const HeadRow& row,
                                      const RawRow& raw, int32_t head, TokenTotal* tiles) {
  const uint8_t* candidates = params.candidates[blockIdx.x].data;
  TokenTotal total = {0, 0};
  for (int32_t tile = 0; tile * kTile < row.tokens; ++tile) {
    const TileSpread of_tile = params.tile_spreads[(row.first_tile + tile) * params.group + head];
    total.sum += of_tile.sum;
    total.count += of_tile.count;
  }
  Spread spread;
  spread.mean = MeanOf(total);
  const TokenTotal squares = BlockTokenSum(row.tokens, tiles, [&](int32_t token, double* lane) {
    const double score = raw.At(head, token);
    if (candidates[token] == 0 || !isfinite(score)) return 0;
    const double distance = score - spread.mean;
    *lane = fma(distance, distance, *lane);
    return 1;
  });
  spread.deviation = DeviationOf(squares.sum, squares.count);
  return spread;
}

// Query heads in order; NaN in any of them is no score.
__device__ inline float Reduced(const TriAttentionParams& params, const RawRow& raw,
                                const RawSpread* spreads, int32_t token) {
  double reduced = params.mean_of_group ? 0.0 : -std::numeric_limits<double>::infinity();
  for (int32_t head = 0; head < params.group; ++head) {
    double score = raw.At(head, token);
    if (params.zscore) score = Standardise({spreads[head].mean, spreads[head].deviation}, score);
    if (params.mean_of_group) {
      reduced += score;
    } else {
      reduced = score > reduced || score != score ? score : reduced;
    }
  }
  return ScoreFrom(params.mean_of_group ? reduced / static_cast<double>(params.group) : reduced);
}

__global__ void __launch_bounds__(kSumThreads, 3) TriAttentionKernel(TriAttentionParams params) {
  KVERN_SHARED(TokenTotal, tiles, kSumTiles);
  const HeadRow row = params.rows.rows[blockIdx.x];
  RawSpread* spreads = params.spreads + int64_t{blockIdx.x} * params.group;
  const RawRow raw = {params.raw + row.first_tile * params.group * kTile, params.group};
  for (int32_t head = 0; params.zscore && head < params.group; ++head) {
    const Spread spread = SpreadOfHead(params, row, raw, head, tiles);
    if (threadIdx.x == 0) spreads[head] = {spread.mean, spread.deviation};
  }
  __syncthreads();
  const ScoreRow scores = params.scores[blockIdx.x];
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < row.row_tokens;
       token += kSumThreads) {
    scores.data[token * scores.stride] =
        token < row.tokens ? Reduced(params, raw, spreads, token) : NoScore();
  }
}

}  // namespace

cudaError_t LaunchTriAttention(const TriAttentionParams& params, cudaStream_t stream) {
  return Launch(&TriAttentionKernel, {params.rows.count, kSumThreads}, params, stream);
}

}  // namespace kvern::cuda
