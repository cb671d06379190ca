// Logits in f64, the specification (ruling 6): one dot product per moment vector and key, two
// threads to a key, the vectors of a query head in shared memory. As ref/expected_attention.cc.
#include <algorithm>

#include "kernels/cuda/expected_attention.h"
#include "kernels/cuda/row_pair.cuh"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRound = kThreads / 2;  // tokens: two threads share one
constexpr int kMostHeld = 40 << 10;   // bytes of one query head's vectors in shared memory

// The key that a pair works on.
struct PairKey {
  const std::byte* row;
  int64_t dim_stride;
  int32_t head_dim;
};

// <vector, key>, or with `squared` <vector, key * key>, in f64 lanes. Both threads get it.
template <class T, RowAccess access, bool squared>
__device__ inline double Dot(const PairKey& key, const double* vector) {
  double lanes[kOctet] = {};
  for (int32_t first = IsOdd() ? kOctet : 0; first < key.head_dim; first += kStep) {
    float x[kOctet];
    LoadOctet<T, access>(key.row, key.dim_stride, first, x);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      const double wide = double{x[e]};
      lanes[e] = fma(vector[first + e], squared ? wide * wide : wide, lanes[e]);
    }
  }
  return PairTreeSum(lanes);
}

// Moments of one query head.
struct HeadMoments {
  const double* linear;
  const double* factors;  // [rank, head_dim]
  const double* diagonal;
};

// <key, factors key>: each image goes to the lane of its row.
template <class T, RowAccess access>
__device__ inline double FullForm(const PairKey& key, const double* factors) {
  double lanes[kOctet] = {};
  for (int32_t octet = 0; octet * kOctet < key.head_dim; ++octet) {
    float x[kOctet];
    LoadOctet<T, access>(key.row, key.dim_stride, octet * kOctet, x);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      const int64_t d = octet * kOctet + e;
      const double image = Dot<T, access, false>(key, factors + d * key.head_dim);
      if ((octet % 2 != 0) == IsOdd()) lanes[e] = fma(image, double{x[e]}, lanes[e]);
    }
  }
  return PairTreeSum(lanes);
}

template <class T, RowAccess access>
__device__ inline double Logit(const ExpectedAttentionParams& params, const PairKey& key,
                               const HeadMoments& moments) {
  double logit = Dot<T, access, false>(key, moments.linear);
  if (params.full) {
    logit += FullForm<T, access>(key, moments.factors);
  } else {
    for (int32_t j = 0; j < params.rank; ++j) {
      const double image = Dot<T, access, false>(key, moments.factors + int64_t{j} * key.head_dim);
      logit = fma(image, image, logit);
    }
    logit += Dot<T, access, true>(key, moments.diagonal);
  }
  return isfinite(logit) ? logit : std::numeric_limits<double>::quiet_NaN();
}

// Copies `count` doubles by all threads.
__device__ inline void Hold(const double* from, int32_t count, double* to) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) to[i] = from[i];
}

template <bool kHeld>
__device__ inline HeadMoments MomentsOf(const ExpectedAttentionParams& params, const HeadRow& row,
                                        int32_t g, double* held) {
  const QueryMoments& of_sequence = params.moments[row.sequence];
  const int64_t query = int64_t{row.layer} * params.q_heads + row.head * params.group + g;
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  HeadMoments moments = {of_sequence.linear + query * head_dim,
                         of_sequence.factors + query * params.rank * head_dim,
                         params.full ? nullptr : of_sequence.diagonal + query * head_dim};
  if (!kHeld) return moments;
  Hold(moments.linear, head_dim, held);
  Hold(moments.factors, params.rank * head_dim, held + head_dim);
  if (!params.full) Hold(moments.diagonal, head_dim, held + (1 + params.rank) * head_dim);
  return {held, held + head_dim, held + (1 + params.rank) * head_dim};
}

template <class T, RowAccess access>
__device__ inline void WriteNorms(const ExpectedAttentionParams& params, const Tile& tile) {
  const HeadRow row = params.values.rows[tile.row];
  const KvLayer values = params.values.keys.layers[row.kv];
  for (int32_t round = 0; round < kTile; round += kThreads) {
    const int32_t first = static_cast<int32_t>(tile.first) + round;
    float norm = NoScore();
    if (first < row.tokens) {  // the same for the whole block
      const RowPair pair = PairAt(values, row.head, FirstOfPair(first), row.tokens);
      norm = OwnNorm<T, access>(pair, params.values.keys.shape.head_dim);
    }
    const int32_t own = first + static_cast<int32_t>(threadIdx.x);
    params.norms[int64_t{blockIdx.x} * kTile + round + threadIdx.x] =
        own < row.tokens ? norm : NoScore();
  }
}

template <class T, RowAccess access, bool kHeld>
__global__ void __launch_bounds__(kThreads, 3) LogitsKernel(ExpectedAttentionParams params) {
  KVERN_DYNAMIC_SHARED(double, held);
  const Tile tile = params.rows.tiles[blockIdx.x];
  const HeadRow row = params.rows.rows[tile.row];
  const KvLayer keys = params.rows.keys.layers[row.kv];
  const uint8_t* counted = params.counted[tile.row].data;
  for (int32_t g = 0; g < params.group; ++g) {
    const HeadMoments moments = MomentsOf<kHeld>(params, row, g, held);
    __syncthreads();
    for (int32_t round = 0; round < kTile; round += kRound) {
      const int32_t first = static_cast<int32_t>(tile.first) + round;
      if (first >= row.tokens) continue;  // the same for the whole block
      const int32_t own = first + static_cast<int32_t>(threadIdx.x) / 2;
      const int32_t token = min(own, row.tokens - 1);
      const PairKey key = {keys.Address(row.head, token), keys.dim_stride,
                           params.rows.keys.shape.head_dim};
      double logit = Logit<T, access>(params, key, moments);
      if (counted[token] == 0) logit = std::numeric_limits<double>::quiet_NaN();
      if (own < row.tokens && !IsOdd()) {
        params.logits[(int64_t{blockIdx.x} * params.group + g) * kTile + own - tile.first] = logit;
      }
    }
    __syncthreads();
  }
  if (params.value_norm) WriteNorms<T, access>(params, tile);
}

template <class T, RowAccess access>
cudaError_t LaunchTyped(const ExpectedAttentionParams& params, cudaStream_t stream) {
  // A kernel that names dynamic shared memory has some.
  LaunchShape launch = {params.rows.tile_count, kThreads, sizeof(Vector16)};
  const int64_t vectors = 1 + params.rank + (params.full ? 0 : 1);
  const int64_t bytes = vectors * params.rows.keys.shape.head_dim * sizeof(double);
  if (bytes > kMostHeld) return Launch(&LogitsKernel<T, access, false>, launch, params, stream);
  launch.shared_bytes = static_cast<int>(std::max<int64_t>(bytes, launch.shared_bytes));
  return Launch(&LogitsKernel<T, access, true>, launch, params, stream);
}

}  // namespace

cudaError_t LaunchExpectedLogits(const ExpectedAttentionParams& params, cudaStream_t stream) {
  const bool vectors =
      params.rows.keys.shape.access == RowAccess::kVector &&
      (!params.value_norm || params.values.keys.shape.access == RowAccess::kVector);
  return VisitDType(params.rows.keys.shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return vectors ? LaunchTyped<T, RowAccess::kVector>(params, stream)
                   : LaunchTyped<T, RowAccess::kElements>(params, stream);
  });
}

}  // namespace kvern::cuda
