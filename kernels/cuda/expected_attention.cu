// Softmax of each query head over the row, then the mean probability of the group, or its logarithm
// without leaving log space (ruling 7), weighed by the value.
#include "kernels/cuda/expected_attention.h"
#include "kernels/cuda/row.cuh"
#include "kernels/cuda/softmax.cuh"
#include "kernels/cuda/token_sum.cuh"

namespace kvern::cuda {
namespace {

constexpr int kWarps = kSumThreads / kWarp;
constexpr double kSmallestValueNorm = 1e-30;  // under a logarithm (ruling 7)

struct LogitRow {
  const double* logits;  // of the row's first tile
  int32_t group;
  __device__ double At(int32_t head, int32_t token) const {
    const int64_t tile = token / kTile;
    return logits[(tile * group + head) * kTile + token % kTile];
  }
};

__device__ inline SoftMaxTotal TotalOfHead(const LogitRow& logits, int32_t head, int32_t tokens,
                                           TokenTotal* tiles, double* of_warps) {
  double largest = -std::numeric_limits<double>::infinity();
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < tokens; token += kSumThreads) {
    const double logit = logits.At(head, token);
    if (isfinite(logit)) largest = Larger(largest, logit);
  }
  largest = BlockLargest<kWarps>(largest, of_warps);
  const TokenTotal total = BlockTokenSum(tokens, tiles, [&](int32_t token, double* lane) {
    const double logit = logits.At(head, token);
    if (!isfinite(logit)) return 0;
    *lane += Exp(logit - largest);
    return 1;
  });
  return {largest, total.sum};
}

__device__ inline double MeanProbability(const LogitRow& logits, const SoftMaxTotal* totals,
                                         int32_t token) {
  double sum = 0;
  for (int32_t g = 0; g < logits.group; ++g) {
    sum += Probability(logits.At(g, token), totals[g].largest, totals[g].sum);
  }
  return sum / static_cast<double>(logits.group);
}

__device__ inline double LogMeanProbability(const LogitRow& logits, const SoftMaxTotal* totals,
                                            int32_t token) {
  double largest = -std::numeric_limits<double>::infinity();
  for (int32_t g = 0; g < logits.group; ++g) {
    const double x = logits.At(g, token) - LogSum(totals[g].largest, totals[g].sum);
    if (x != x) return x;
    largest = Larger(largest, x);
  }
  double sum = 0;
  for (int32_t g = 0; g < logits.group; ++g) {
    sum += Exp((logits.At(g, token) - LogSum(totals[g].largest, totals[g].sum)) - largest);
  }
  return largest + Log(sum / static_cast<double>(logits.group));
}

__device__ inline float ScoreOf(const ExpectedAttentionParams& params, const HeadRow& row,
                                const LogitRow& logits, const SoftMaxTotal* totals, int32_t token) {
  double score = params.log ? LogMeanProbability(logits, totals, token)
                            : MeanProbability(logits, totals, token) + params.epsilon;
  if (params.value_norm) {
    const double norm = double{params.norms[row.first_tile * kTile + token]};
    score = params.log ? score + Log(norm < kSmallestValueNorm ? kSmallestValueNorm : norm)
                       : score * norm;
  }
  return ScoreFrom(score);
}

__global__ void __launch_bounds__(kSumThreads, 3)
    ExpectedAttentionKernel(ExpectedAttentionParams params) {
  KVERN_SHARED(TokenTotal, tiles, kSumTiles);
  KVERN_SHARED(double, of_warps, kWarps);
  const HeadRow row = params.rows.rows[blockIdx.x];
  const LogitRow logits = {params.logits + row.first_tile * params.group * kTile, params.group};
  SoftMaxTotal* totals = params.totals + int64_t{blockIdx.x} * params.group;
  for (int32_t g = 0; g < params.group; ++g) {
    const SoftMaxTotal total = TotalOfHead(logits, g, row.tokens, tiles, of_warps);
    if (threadIdx.x == 0) totals[g] = total;
  }
  __syncthreads();
  const ScoreRow scores = params.scores[blockIdx.x];
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < row.row_tokens;
       token += kSumThreads) {
    scores.data[token * scores.stride] =
        token < row.tokens ? ScoreOf(params, row, logits, totals, token) : NoScore();
  }
}

}  // namespace

cudaError_t LaunchExpectedAttention(const ExpectedAttentionParams& params, cudaStream_t stream) {
  return Launch(&ExpectedAttentionKernel, {params.rows.count, kSumThreads}, params, stream);
}

}  // namespace kvern::cuda
