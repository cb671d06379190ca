// All of it in f64, as ref/key_diff.cc: with a large key bias every cosine is close to 1.
#include "kernels/cuda/key_diff.h"
#include "kernels/cuda/key_total.cuh"
#include "kernels/cuda/row_pair.cuh"
#include "kernels/cuda/token_sum.cuh"
#include "kernels/cuda/unrotate.cuh"

namespace kvern::cuda {
namespace {

constexpr int kThreads = kTile;
constexpr int kMaxHeadDim = 1024;
constexpr double kSmallestProduct = 1e-8;  // of the two norms under the cosine

__global__ void __launch_bounds__(kThreads) AnchorsKernel(KeyDiffParams params) {
  KVERN_SHARED(double, anchor, kMaxHeadDim);
  const HeadRow row = params.rows.rows[blockIdx.x];
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  const TileSums tiles = {params.sums, params.counts, row.first_tile, TilesOf(row), head_dim};
  const int32_t count = CountOf(tiles);
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < head_dim; d += kThreads) {
    anchor[d] = count == 0 ? 0.0 : TotalOf(tiles, d) / static_cast<double>(count);
    params.anchors[int64_t{blockIdx.x} * head_dim + d] = anchor[d];
  }
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  double lane = 0;  // both halves of the warp do the same
  for (int32_t d = static_cast<int32_t>(threadIdx.x) % kLanes; d < head_dim; d += kLanes) {
    lane = fma(anchor[d], anchor[d], lane);
  }
  lane = HalfWarpTreeSum(lane);
  if (threadIdx.x == 0) params.anchor_norms[blockIdx.x] = sqrt(lane);
}

// <key, anchor> of this thread's own row, after two threads have read it and its neighbour.
template <class T, RowAccess access>
__device__ inline double OwnDot(const KeyDiffParams& params, const HeadRow& row, int32_t first,
                                const double* anchor) {
  const KvLayer keys = params.rows.keys.layers[row.kv];
  const int32_t pair = FirstOfPair(first);
  TurnedRow rows[kPairRows];
  KVERN_UNROLL
  for (int r = 0; r < kPairRows; ++r) {
    rows[r] =
        TurnedRowAt(keys, row, min(pair + r, row.tokens - 1), params.rotations + row.sequence);
  }
  double dots[kPairRows][kOctet] = {};
  for (int32_t at = IsOdd() ? kOctet : 0; at < params.rows.keys.shape.head_dim; at += kStep) {
    KVERN_UNROLL
    for (int r = 0; r < kPairRows; ++r) {
      float x[kOctet];
      LoadUnrotatedOctet<T, access>(rows[r], at, x);
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        dots[r][e] = fma(double{x[e]}, anchor[at + e], dots[r][e]);
      }
    }
  }
  return OwnTreeSum(dots);
}

template <class T, RowAccess access>
__global__ void __launch_bounds__(kThreads) KeyDiffKernel(KeyDiffParams params) {
  KVERN_SHARED(double, anchor, kMaxHeadDim);
  const Tile tile = params.rows.tiles[blockIdx.x];
  const HeadRow row = params.rows.rows[tile.row];
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < head_dim; d += kThreads) {
    anchor[d] = params.anchors[int64_t{tile.row} * head_dim + d];
  }
  __syncthreads();
  const int32_t first = static_cast<int32_t>(tile.first);
  const int32_t token = first + static_cast<int32_t>(threadIdx.x);
  double score = 0;
  if (first < row.tokens) {  // the same for the whole block
    const double norm = params.norms[int64_t{blockIdx.x} * kTile + threadIdx.x];
    const double product = norm * params.anchor_norms[tile.row];
    const double dot = OwnDot<T, access>(params, row, first, anchor);
    score = -dot / (product < kSmallestProduct ? kSmallestProduct : product);  // NaN stays
  }
  if (token >= row.row_tokens) return;
  const ScoreRow scores = params.scores[tile.row];
  scores.data[token * scores.stride] = token < row.tokens ? ScoreFrom(score) : NoScore();
}

}  // namespace

cudaError_t LaunchAnchors(const KeyDiffParams& params, cudaStream_t stream) {
  return Launch(&AnchorsKernel, {params.rows.count, kThreads}, params, stream);
}

cudaError_t LaunchKeyDiff(const KeyDiffParams& params, cudaStream_t stream) {
  const LaunchShape launch = {params.rows.tile_count, kThreads};
  return VisitDType(params.rows.keys.shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return params.rows.keys.shape.access == RowAccess::kVector
               ? Launch(&KeyDiffKernel<T, RowAccess::kVector>, launch, params, stream)
               : Launch(&KeyDiffKernel<T, RowAccess::kElements>, launch, params, stream);
  });
}

}  // namespace kvern::cuda
