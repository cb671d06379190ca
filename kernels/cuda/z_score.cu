// Two passes in f64 over a row that stays in the cache: the large common offset of scores would
// cancel badly in one.
#include "kernels/cuda/row.cuh"
#include "kernels/cuda/token_sum.cuh"
#include "kernels/cuda/z_score.h"

namespace kvern::cuda {
namespace {

// One block per row.
__global__ void __launch_bounds__(kSumThreads) ZScoreKernel(ZScoreParams params) {
  KVERN_SHARED(TokenTotal, tiles, kSumTiles);
  const ScoreRow row = params.scores[blockIdx.x];
  const uint8_t* candidates = params.candidates[blockIdx.x].data;
  const int32_t tokens = params.tokens[blockIdx.x];
  const auto counted = [&](int32_t token, float score) {
    return candidates[token] != 0 && isfinite(score);
  };
  const TokenTotal total = BlockTokenSum(tokens, tiles, [&](int32_t token, double* lane) {
    const float score = row.data[token * row.stride];
    if (!counted(token, score)) return 0;
    *lane += double{score};
    return 1;
  });
  Spread spread;
  spread.mean = MeanOf(total);
  const TokenTotal squares = BlockTokenSum(tokens, tiles, [&](int32_t token, double* lane) {
    const float score = row.data[token * row.stride];
    if (!counted(token, score)) return 0;
    const double distance = double{score} - spread.mean;
    *lane = fma(distance, distance, *lane);
    return 1;
  });
  spread.deviation = DeviationOf(squares.sum, squares.count);
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < tokens; token += kSumThreads) {
    float& score = row.data[token * row.stride];
    score = ScoreFrom(Standardise(spread, double{score}));
  }
}

}  // namespace

cudaError_t LaunchZScore(const ZScoreParams& params, cudaStream_t stream) {
  return Launch(&ZScoreKernel, {params.rows, kSumThreads}, params, stream);
}

}  // namespace kvern::cuda
