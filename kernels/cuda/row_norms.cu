// One f32 lane sum of squares and one root per row, two rows per pair of threads.
#include "kernels/cuda/row_norms.h"
#include "kernels/cuda/row_pair.cuh"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 256;
static_assert(kThreads == kRowNormsRun);

// A block per run: thread i writes token i.
template <class T, RowAccess access>
__global__ void __launch_bounds__(kThreads) RowNormsKernel(RowNormsParams params) {
  const ScoreRun run = params.grid.RunOf(blockIdx.x);
  const HeadRow row = params.rows.rows[run.row];
  const int32_t token = run.first + static_cast<int32_t>(threadIdx.x);
  float norm = NoScore();
  if (run.first < row.tokens) {  // the same for the whole block
    const KvLayer layer = params.rows.keys.layers[row.kv];
    const RowPair pair = PairAt(layer, row.head, FirstOfPair(run.first), row.tokens);
    norm = OwnNorm<T, access>(pair, params.rows.keys.shape.head_dim);
  }
  if (token >= run.end) return;
  const ScoreRow norms = params.norms[run.row];
  norms.data[token * norms.stride] = token < row.tokens ? ScoreFrom(norm) : NoScore();
}

}  // namespace

cudaError_t LaunchRowNorms(const RowNormsParams& params, cudaStream_t stream) {
  const RowShape& shape = params.rows.keys.shape;
  const LaunchShape launch = {params.grid.blocks, kThreads};
  return VisitDType(shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return shape.access == RowAccess::kVector
               ? Launch(&RowNormsKernel<T, RowAccess::kVector>, launch, params, stream)
               : Launch(&RowNormsKernel<T, RowAccess::kElements>, launch, params, stream);
  });
}

}  // namespace kvern::cuda
