// The passes over keys: two threads share a key and walk over it once for four queries of the
// window. As ref/window_attention.cc.
#include "kernels/cuda/centred_dots.cuh"
#include "kernels/cuda/softmax.cuh"
#include "kernels/cuda/token_sum.cuh"
#include "kernels/cuda/window_attention.h"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRound = kThreads / 2;  // tokens: two threads share one
constexpr int kMaxHeadDim = 1024;
constexpr double kNothing = -std::numeric_limits<double>::infinity();

enum class Pass : uint8_t { kMaxima, kSums, kShares };

// One query head of one tile.
struct HeadTile {
  Tile tile;
  HeadRow row;
  KvLayer keys;
  int32_t g;             // query head of the group
  int32_t prefix;        // tokens before the window
  int64_t of_row;        // index [row, g, 0] of constants, largest, sums
  int64_t of_tile;       // index [tile, g, 0] of tiles
  const float* queries;  // [window, head_dim]

  __device__ int32_t First() const { return static_cast<int32_t>(tile.first); }
  __device__ bool Sees(int32_t query, int32_t token) const { return token < prefix + query + 1; }
};

__device__ inline HeadTile HeadTileAt(const WindowAttentionParams& params, int32_t g) {
  HeadTile at;
  at.tile = params.rows.tiles[blockIdx.x];
  at.row = params.rows.rows[at.tile.row];
  at.keys = params.rows.keys.layers[at.row.kv];
  at.g = g;
  at.prefix = at.row.tokens > params.window ? at.row.tokens - params.window : 0;
  at.of_row = (int64_t{at.tile.row} * params.group + g) * params.window;
  at.of_tile = (int64_t{blockIdx.x} * params.group + g) * params.window;
  const int64_t query = int64_t{at.row.layer} * params.q_heads + at.row.head * params.group + g;
  at.queries =
      params.queries[at.row.sequence] + query * params.window * params.rows.keys.shape.head_dim;
  return at;
}

// Logits of this thread's two queries of the chunk at `first_query`; NaN where one sees nothing
// there.
template <class T, RowAccess access>
__device__ inline void OwnLogits(const WindowAttentionParams& params, const HeadTile& at,
                                 const float* reference, int32_t first_query, int32_t token,
                                 double (&logits)[kOwnHeads]) {
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  const int32_t queries = min(kHeads, params.window - first_query);
  const KeyOctets<T, access, 0> key(at.keys.Address(at.row.head, min(token, at.row.tokens - 1)),
                                    at.keys.dim_stride);
  float dots[kOwnHeads];
  CentredDots<0>(key, reference, {at.queries + int64_t{first_query} * head_dim, head_dim, queries},
                 head_dim, dots);
  KVERN_UNROLL
  for (int j = 0; j < kOwnHeads; ++j) {
    const int32_t query = first_query + OwnHead(j);
    const bool sees = OwnHead(j) < queries && at.Sees(query, token);
    logits[j] = sees ? (double{dots[j]} + params.constants[at.of_row + query]) * params.scale
                     : std::numeric_limits<double>::quiet_NaN();
  }
}

// The largest of each of the chunk's queries, over the tile.
__device__ inline void WriteMaxima(const WindowAttentionParams& params, const HeadTile& at,
                                   int32_t first_query, double (&largest)[kOwnHeads],
                                   double* of_warps) {
  KVERN_UNROLL
  for (int j = 0; j < kOwnHeads; ++j) {
    KVERN_UNROLL
    for (int distance = kWarp / 2; distance > 1; distance /= 2) {  // threads of the same parity
      largest[j] = Larger(largest[j], __shfl_xor_sync(kAllLanes, largest[j], distance));
    }
    if (threadIdx.x % kWarp < 2) of_warps[(threadIdx.x / kWarp) * kHeads + OwnHead(j)] = largest[j];
  }
  __syncthreads();
  const auto query = static_cast<int32_t>(threadIdx.x);
  if (query < kHeads && first_query + query < params.window) {
    double most = kNothing;
    for (int warp = 0; warp < kWarps; ++warp) most = Larger(most, of_warps[warp * kHeads + query]);
    params.tiles[at.of_tile + first_query + query] = most;
  }
}

// The sum of each of the chunk's queries, in token order: half a warp per query, a thread per lane.
__device__ inline void WriteSums(const WindowAttentionParams& params, const HeadTile& at,
                                 int32_t first_query, const double* terms) {
  const int32_t query = static_cast<int32_t>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  if (query >= kHeads) return;  // whole warps
  double sum = 0;
  for (int i = 0; i < kTile / kLanes; ++i) {
    const double term = terms[query * kTile + lane + i * kLanes];
    if (term == term) sum += term;
  }
  sum = HalfWarpTreeSum(sum);
  if (lane == 0 && first_query + query < params.window) {
    params.tiles[at.of_tile + first_query + query] = sum;
  }
}

// Adds the shares of the chunk's queries in their order: the pair's threads tell each other theirs.
__device__ inline double AddShares(double total, const double (&own)[kOwnHeads], int32_t queries) {
  KVERN_UNROLL
  for (int j = 0; j < kOwnHeads; ++j) {
    const double other = __shfl_xor_sync(kAllLanes, own[j], 1);
    const bool odd = threadIdx.x % 2 != 0;
    if (2 * j < queries) total += odd ? other : own[j];
    if (2 * j + 1 < queries) total += odd ? own[j] : other;
  }
  return total;
}

template <class T, RowAccess access>
__device__ inline void MaximaOrSums(const WindowAttentionParams& params, const HeadTile& at,
                                    const float* reference, bool sums, double* shared) {
  for (int32_t query = 0; query < params.window; query += kHeads) {
    double largest[kOwnHeads] = {kNothing, kNothing};
    for (int32_t round = 0; round < kTile; round += kRound) {
      const int32_t within = round + static_cast<int32_t>(threadIdx.x) / 2;
      double logits[kOwnHeads] = {std::numeric_limits<double>::quiet_NaN(),
                                  std::numeric_limits<double>::quiet_NaN()};
      if (at.First() + round < at.row.tokens) {  // the same for the whole block
        OwnLogits<T, access>(params, at, reference, query, at.First() + within, logits);
      }
      KVERN_UNROLL
      for (int j = 0; j < kOwnHeads; ++j) {
        const bool finite = isfinite(logits[j]);
        if (!sums) {
          largest[j] = finite ? Larger(largest[j], logits[j]) : largest[j];
          continue;
        }
        const int32_t own = min(query + OwnHead(j), params.window - 1);
        shared[OwnHead(j) * kTile + within] = finite
                                                  ? Exp(logits[j] - params.largest[at.of_row + own])
                                                  : std::numeric_limits<double>::quiet_NaN();
      }
    }
    if (sums) {
      __syncthreads();
      WriteSums(params, at, query, shared);
    } else {
      WriteMaxima(params, at, query, largest, shared);
    }
    __syncthreads();
  }
}

template <class T, RowAccess access>
__device__ inline void Shares(const WindowAttentionParams& params, const HeadTile& at,
                              const float* reference) {
  for (int32_t round = 0; round < kTile; round += kRound) {
    if (at.First() + round >= at.prefix) continue;  // the same for the whole block
    const int32_t within = round + static_cast<int32_t>(threadIdx.x) / 2;
    const int32_t token = at.First() + within;
    double total = 0;
    for (int32_t query = 0; query < params.window; query += kHeads) {
      double logits[kOwnHeads];
      OwnLogits<T, access>(params, at, reference, query, token, logits);
      double own[kOwnHeads];
      KVERN_UNROLL
      for (int j = 0; j < kOwnHeads; ++j) {
        const int64_t index = at.of_row + min(query + OwnHead(j), params.window - 1);
        own[j] = Probability(logits[j], params.largest[index], params.sums[index]);
      }
      total = AddShares(total, own, min(kHeads, params.window - query));
    }
    if (token < at.prefix && threadIdx.x % 2 == 0) {
      params.shares[(int64_t{blockIdx.x} * params.group + at.g) * kTile + within] =
          total / static_cast<double>(params.window);
    }
  }
}

template <class T, RowAccess access, Pass pass>
__global__ void __launch_bounds__(kThreads, 3) WindowKernel(WindowAttentionParams params) {
  KVERN_SHARED(float, reference, kMaxHeadDim);
  KVERN_SHARED(double, shared, kHeads* kTile);
  const uint32_t row = params.rows.tiles[blockIdx.x].row;
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < head_dim; d += kThreads) {
    reference[d] = params.reference[int64_t{row} * head_dim + d];
  }
  __syncthreads();
  for (int32_t g = 0; g < params.group; ++g) {
    const HeadTile at = HeadTileAt(params, g);
    if (pass == Pass::kShares) {
      Shares<T, access>(params, at, reference);
    } else {
      MaximaOrSums<T, access>(params, at, reference, pass == Pass::kSums, shared);
    }
  }
}

template <Pass pass>
cudaError_t LaunchPass(const WindowAttentionParams& params, cudaStream_t stream) {
  const LaunchShape launch = {params.rows.tile_count, kThreads};
  return VisitDType(params.rows.keys.shape.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return params.rows.keys.shape.access == RowAccess::kVector
               ? Launch(&WindowKernel<T, RowAccess::kVector, pass>, launch, params, stream)
               : Launch(&WindowKernel<T, RowAccess::kElements, pass>, launch, params, stream);
  });
}

}  // namespace

cudaError_t LaunchWindowMaxima(const WindowAttentionParams& params, cudaStream_t stream) {
  return LaunchPass<Pass::kMaxima>(params, stream);
}
cudaError_t LaunchWindowSums(const WindowAttentionParams& params, cudaStream_t stream) {
  return LaunchPass<Pass::kSums>(params, stream);
}
cudaError_t LaunchWindowShares(const WindowAttentionParams& params, cudaStream_t stream) {
  return LaunchPass<Pass::kShares>(params, stream);
}

}  // namespace kvern::cuda
