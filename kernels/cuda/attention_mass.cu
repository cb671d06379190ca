// A thread per score, in f64; where value norms count, two threads read two rows together.
#include "kernels/base/math.h"
#include "kernels/cuda/attention_mass.h"
#include "kernels/cuda/row_pair.cuh"

namespace kvern::cuda {
namespace {

constexpr int kThreads = kAttentionMassRun;
// Of a mass or a norm under the logarithm: one empty token does not decide the spread of its row.
constexpr double kFloor = 1e-30;

// Norm of this thread's own token, NaN where the row does not hold it.
template <class T, RowAccess access>
__device__ inline float OwnValueNorm(const AttentionMassParams& params, const ScoreRun& run) {
  const HeadRow row = params.values.rows[run.row];
  const int32_t token = run.first + static_cast<int32_t>(threadIdx.x);
  if (run.first >= row.tokens) return NoScore();  // the same for the whole block
  const KvLayer layer = params.values.keys.layers[row.kv];
  const RowPair pair = PairAt(layer, row.head, FirstOfPair(run.first), row.tokens);
  const float norm = OwnNorm<T, access>(pair, params.values.keys.shape.head_dim);
  return token < row.tokens ? norm : NoScore();
}

template <class T, RowAccess access>
__global__ void __launch_bounds__(kThreads, 3) AttentionMassKernel(AttentionMassParams params) {
  const ScoreRun run = params.grid.RunOf(blockIdx.x);
  const int32_t token = run.first + static_cast<int32_t>(threadIdx.x);
  float norm = 1.0f;
  if (params.value_norm) norm = OwnValueNorm<T, access>(params, run);
  if (token >= run.end) return;
  const ScoreRow mass = params.mass[run.row];
  double score = double{mass.data[token * mass.stride]};
  if (params.visible != nullptr) score /= params.visible[run.row].data[token];
  if (params.value_norm) score *= double{norm};
  if (params.log) score = Log(score < kFloor ? kFloor : score);
  const ScoreRow scores = params.scores[run.row];
  scores.data[token * scores.stride] = ScoreFrom(score);
}

}  // namespace

cudaError_t LaunchAttentionMass(const AttentionMassParams& params, cudaStream_t stream) {
  const RowShape& shape = params.values.keys.shape;
  const LaunchShape launch = {params.grid.blocks, kThreads};
  return VisitDType(shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return shape.access == RowAccess::kVector
               ? Launch(&AttentionMassKernel<T, RowAccess::kVector>, launch, params, stream)
               : Launch(&AttentionMassKernel<T, RowAccess::kElements>, launch, params, stream);
  });
}

}  // namespace kvern::cuda
