// One dot product per moment vector and key, two threads to a key: f32 on centred keys with the
// vectors of a query head in shared memory, or f64 for the full form. As ref/expected_attention.cc.
#include <type_traits>

#include "kernels/cuda/expected_attention.h"
#include "kernels/cuda/expected_slope.cuh"
#include "kernels/cuda/row_pair.cuh"

namespace kvern::cuda {
namespace {

constexpr int kThreads = kSlopeThreads;
constexpr int kRound = kThreads / 2;  // tokens: two threads share one
constexpr int kMostHeld = 40 << 10;   // bytes of one query head's vectors in shared memory

// The key that a pair works on, and what is taken off it (null: nothing).
struct PairKey {
  const std::byte* row;
  int64_t dim_stride;
  int32_t head_dim;
  const float* reference;  // [head_dim] shared memory
};

enum class Power : uint8_t { kOne, kSquare };
// The low-rank form with its factors in shared memory or, too many, left in f64 where they are.
enum class Form : uint8_t { kHeld, kLeft, kFull };

// <vector, key - reference> (or its squares) in f32 lanes. Both threads get it.
template <class T, RowAccess access, Power power, class V>
__device__ inline double CentredDot(const PairKey& key, const V* vector) {
  float lanes[kOctet] = {};
  for (int32_t first = IsOdd() ? kOctet : 0; first < key.head_dim; first += kStep) {
    float x[kOctet];
    LoadOctet<T, access>(key.row, key.dim_stride, first, x);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      const float c = x[e] - key.reference[first + e];
      const float weight = static_cast<float>(vector[first + e]);
      lanes[e] = fmaf(weight, power == Power::kSquare ? c * c : c, lanes[e]);
    }
  }
  return double{PairTreeSum(lanes)};
}

// <vector, key> in f64 lanes. Both threads get it.
template <class T, RowAccess access>
__device__ inline double Dot(const PairKey& key, const double* vector) {
  double lanes[kOctet] = {};
  for (int32_t first = IsOdd() ? kOctet : 0; first < key.head_dim; first += kStep) {
    float x[kOctet];
    LoadOctet<T, access>(key.row, key.dim_stride, first, x);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) lanes[e] = fma(vector[first + e], double{x[e]}, lanes[e]);
  }
  return PairTreeSum(lanes);
}

// Vectors of one query head around the reference key.
template <class V>
struct CentredForm {
  const float* slope;
  const V* factors;  // [rank, head_dim]
  const float* diagonal;
};

template <class T, RowAccess access, class V>
__device__ inline double LowRankLogit(const PairKey& key, const CentredForm<V>& form,
                                      int32_t rank) {
  double logit = CentredDot<T, access, Power::kOne>(key, form.slope);
  for (int32_t j = 0; j < rank; ++j) {
    const V* factor = form.factors + int64_t{j} * key.head_dim;
    const double image = CentredDot<T, access, Power::kOne>(key, factor);
    logit = fma(image, image, logit);
  }
  return logit + CentredDot<T, access, Power::kSquare>(key, form.diagonal);
}

// <linear, key> + <key, factors key>: each image goes to the lane of its row.
template <class T, RowAccess access>
__device__ inline double FullLogit(const PairKey& key, const double* linear,
                                   const double* factors) {
  double lanes[kOctet] = {};
  for (int32_t octet = 0; octet * kOctet < key.head_dim; ++octet) {
    float x[kOctet];
    LoadOctet<T, access>(key.row, key.dim_stride, octet * kOctet, x);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      const int64_t d = octet * kOctet + e;
      const double image = Dot<T, access>(key, factors + d * key.head_dim);
      if ((octet % 2 != 0) == IsOdd()) lanes[e] = fma(image, double{x[e]}, lanes[e]);
    }
  }
  return Dot<T, access>(key, linear) + PairTreeSum(lanes);
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

__device__ inline HeadMoments MomentsOf(const ExpectedAttentionParams& params, const HeadRow& row,
                                        int32_t g) {
  const QueryMoments& of_sequence = params.moments[row.sequence];
  const int64_t query = int64_t{row.layer} * params.q_heads + row.head * params.group + g;
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  return {of_sequence.linear + query * head_dim,
          of_sequence.factors + query * params.rank * head_dim,
          params.full ? nullptr : of_sequence.diagonal + query * head_dim, params.rank, head_dim};
}

// Rounds `count` numbers into shared memory, by all threads.
template <class V>
__device__ inline void Hold(const V* from, int32_t count, float* to) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
    to[i] = static_cast<float>(from[i]);
  }
}

// Shared memory of the low-rank form.
struct Held {
  float* vectors;  // [head_dim] reference, slope, diagonal, then the factors or nothing
  double* twice;   // [kSlopeHalfWarps]
};

// The vectors of one query head behind the reference. Syncs before it returns.
template <Form form>
__device__ inline auto FormOf(const HeadMoments& moments, const Held& held) {
  float* slope = held.vectors + moments.head_dim;
  float* diagonal = slope + moments.head_dim;
  float* factors = diagonal + moments.head_dim;
  WriteSlope(moments, held.vectors, held.twice, slope);
  Hold(moments.diagonal, moments.head_dim, diagonal);
  if constexpr (form == Form::kHeld) {
    Hold(moments.factors, moments.rank * moments.head_dim, factors);
    __syncthreads();
    return CentredForm<float>{slope, factors, diagonal};
  } else {
    __syncthreads();
    return CentredForm<double>{slope, moments.factors, diagonal};
  }
}

// The logits of query head g over a tile. The full form leaves `held` alone.
template <class T, RowAccess access, Form form>
__device__ inline void TileLogits(const ExpectedAttentionParams& params, const Tile& tile,
                                  int32_t g, const Held& held) {
  const HeadRow row = params.rows.rows[tile.row];
  const KvLayer keys = params.rows.keys.layers[row.kv];
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  const uint8_t* counted = params.counted[tile.row].data;
  const HeadMoments moments = MomentsOf(params, row, g);
  CentredForm<std::conditional_t<form == Form::kHeld, float, double>> centred = {};
  if constexpr (form != Form::kFull) centred = FormOf<form>(moments, held);
  for (int32_t round = 0; round < kTile; round += kRound) {
    const int32_t first = static_cast<int32_t>(tile.first) + round;
    if (first >= row.tokens) continue;  // the same for the whole block
    const int32_t own = first + static_cast<int32_t>(threadIdx.x) / 2;
    const int32_t token = min(own, row.tokens - 1);
    const PairKey key = {keys.Address(row.head, token), keys.dim_stride, head_dim, held.vectors};
    double logit;
    if constexpr (form == Form::kFull) {
      logit = FullLogit<T, access>(key, moments.linear, moments.factors);
    } else {
      logit = LowRankLogit<T, access>(key, centred, params.rank);
    }
    if (!isfinite(logit) || counted[token] == 0) logit = std::numeric_limits<double>::quiet_NaN();
    if (own < row.tokens && !IsOdd()) {
      params.logits[(int64_t{blockIdx.x} * params.group + g) * kTile + own - tile.first] = logit;
    }
  }
  __syncthreads();
}

template <class T, RowAccess access, Form form>
__global__ void __launch_bounds__(kThreads, 3) LogitsKernel(ExpectedAttentionParams params) {
  KVERN_DYNAMIC_SHARED(float, vectors);
  KVERN_SHARED(double, twice, kSlopeHalfWarps);
  const Held held = {vectors, twice};
  const Tile tile = params.rows.tiles[blockIdx.x];
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  if (form != Form::kFull) {
    Hold(params.reference + int64_t{tile.row} * head_dim, head_dim, vectors);
    __syncthreads();
  }
  for (int32_t g = 0; g < params.group; ++g) TileLogits<T, access, form>(params, tile, g, held);
  if (params.value_norm) WriteNorms<T, access>(params, tile);
}

template <class T, RowAccess access>
cudaError_t LaunchTyped(const ExpectedAttentionParams& params, cudaStream_t stream) {
  // A kernel that names dynamic shared memory has some.
  LaunchShape launch = {params.rows.tile_count, kThreads, sizeof(Vector16)};
  if (params.full) return Launch(&LogitsKernel<T, access, Form::kFull>, launch, params, stream);
  const int64_t head_dim_bytes = params.rows.keys.shape.head_dim * sizeof(float);
  constexpr int64_t kOthers = 3;  // reference, slope, diagonal
  const int64_t held_bytes = (kOthers + params.rank) * head_dim_bytes;
  const bool held = held_bytes <= kMostHeld;
  launch.shared_bytes = static_cast<int>(held ? held_bytes : kOthers * head_dim_bytes);
  return held ? Launch(&LogitsKernel<T, access, Form::kHeld>, launch, params, stream)
              : Launch(&LogitsKernel<T, access, Form::kLeft>, launch, params, stream);
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
