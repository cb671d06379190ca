// The passes over keys: two threads share a key and walk over it once for four queries of the
// window. As ref/window_attention.cc.
#include "kernels/base/exp_float.h"
#include "kernels/cuda/centred_dots.cuh"
#include "kernels/cuda/token_sum.cuh"
#include "kernels/cuda/window_attention.h"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRound = kThreads / 2;  // tokens: two threads share one
constexpr int kMaxHeadDim = 1024;
constexpr int kRounds = kTile / kRound;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

enum class Pass : uint8_t { kSums, kShares };

// One query head of one tile.
struct HeadTile {
  Tile tile;
  HeadRow row;
  KvLayer keys;
  int32_t g;             // query head of the group
  int32_t prefix;        // tokens before the window
  int64_t of_tile;       // index [tile, g, 0] of largest and sums
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
  at.of_tile = (int64_t{blockIdx.x} * params.group + g) * params.window;
  const int64_t query = int64_t{at.row.layer} * params.q_heads + at.row.head * params.group + g;
  at.queries =
      params.queries[at.row.sequence] + query * params.window * params.rows.keys.shape.head_dim;
  return at;
}

// Dots of this thread's two queries of the chunk at `first_query`; NaN where one sees nothing there
// or is not finite.
template <class T, RowAccess access>
__device__ inline void OwnDots(const WindowAttentionParams& params, const HeadTile& at,
                               const float* reference, int32_t first_query, int32_t token,
                               float (&dots)[kOwnHeads]) {
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  const int32_t queries = min(kHeads, params.window - first_query);
  const KeyOctets<T, access, 0> key(at.keys.Address(at.row.head, min(token, at.row.tokens - 1)),
                                    at.keys.dim_stride);
  CentredDots<0>(key, reference, {at.queries + int64_t{first_query} * head_dim, head_dim, queries},
                 head_dim, dots);
  KVERN_UNROLL
  for (int j = 0; j < kOwnHeads; ++j) {
    const bool sees = OwnHead(j) < queries && at.Sees(first_query + OwnHead(j), token);
    if (!sees || !isfinite(dots[j])) dots[j] = NoScore();
  }
}

// e^(logit - largest) of a dot of the tile; NaN for NaN.
__device__ inline float Exponential(const WindowAttentionParams& params, float dot, float largest) {
  return ExpFloat((dot - largest) * static_cast<float>(params.scale));
}

// Shared memory of the sums.
struct SumsHeld {
  float* of_warps;  // [kWarps, kHeads]
  float* terms;     // [kHeads, kTile]
};

// The largest of each of the chunk's queries over the tile, for every thread that owns one.
__device__ inline void OwnLargest(const float (&dots)[kRounds][kOwnHeads], float* of_warps,
                                  float (&largest)[kOwnHeads]) {
  KVERN_UNROLL
  for (int j = 0; j < kOwnHeads; ++j) {
    largest[j] = kNothing;
    KVERN_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      if (dots[round][j] > largest[j]) largest[j] = dots[round][j];  // not NaN
    }
    KVERN_UNROLL
    for (int distance = kWarp / 2; distance > 1; distance /= 2) {  // threads of the same parity
      largest[j] = fmaxf(largest[j], __shfl_xor_sync(kAllLanes, largest[j], distance));
    }
    if (threadIdx.x % kWarp < 2) of_warps[(threadIdx.x / kWarp) * kHeads + OwnHead(j)] = largest[j];
  }
  __syncthreads();
  KVERN_UNROLL
  for (int j = 0; j < kOwnHeads; ++j) {
    for (int warp = 0; warp < kWarps; ++warp) {
      largest[j] = fmaxf(largest[j], of_warps[warp * kHeads + OwnHead(j)]);
    }
  }
}

// The sum of each of the chunk's queries, in token order: half a warp per query, a thread per lane.
__device__ inline void WriteSums(const WindowAttentionParams& params, const HeadTile& at,
                                 int32_t first_query, const float* terms) {
  const int32_t query = static_cast<int32_t>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  if (query >= kHeads) return;  // whole warps
  double sum = 0;
  for (int i = 0; i < kTile / kLanes; ++i) {
    const float term = terms[query * kTile + lane + i * kLanes];
    if (term == term) sum += double{term};
  }
  sum = HalfWarpTreeSum(sum);
  if (lane == 0 && first_query + query < params.window) {
    params.sums[at.of_tile + first_query + query] = sum;
  }
}

template <class T, RowAccess access>
__device__ inline void Sums(const WindowAttentionParams& params, const HeadTile& at,
                            const float* reference, const SumsHeld& held) {
  for (int32_t query = 0; query < params.window; query += kHeads) {
    float dots[kRounds][kOwnHeads];
    KVERN_UNROLL
    for (int round = 0; round < kRounds; ++round) {
      dots[round][0] = dots[round][1] = NoScore();
      const int32_t first = at.First() + round * kRound;
      if (first >= at.row.tokens) continue;  // the same for the whole block
      OwnDots<T, access>(params, at, reference, query,
                         first + static_cast<int32_t>(threadIdx.x) / 2, dots[round]);
    }
    float largest[kOwnHeads];
    OwnLargest(dots, held.of_warps, largest);
    KVERN_UNROLL
    for (int j = 0; j < kOwnHeads; ++j) {
      KVERN_UNROLL
      for (int round = 0; round < kRounds; ++round) {
        held.terms[OwnHead(j) * kTile + round * kRound + threadIdx.x / 2] =
            Exponential(params, dots[round][j], largest[j]);
      }
      if (threadIdx.x < 2 && query + OwnHead(j) < params.window) {
        params.largest[at.of_tile + query + OwnHead(j)] = largest[j];
      }
    }
    __syncthreads();
    WriteSums(params, at, query, held.terms);
    __syncthreads();
  }
}

// Adds the shares of the chunk's queries in their order: the pair's threads tell each other theirs.
// weights: of the chunk's queries.
__device__ inline double AddShares(double total, const float (&own)[kOwnHeads],
                                   const double* weights, int32_t queries) {
  const bool odd = threadIdx.x % 2 != 0;
  KVERN_UNROLL
  for (int j = 0; j < kOwnHeads; ++j) {
    const float other = __shfl_xor_sync(kAllLanes, own[j], 1);
    if (2 * j < queries) total = fma(double{odd ? other : own[j]}, weights[2 * j], total);
    if (2 * j + 1 < queries) total = fma(double{odd ? own[j] : other}, weights[2 * j + 1], total);
  }
  return total;
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
      float own[kOwnHeads];
      OwnDots<T, access>(params, at, reference, query, token, own);
      KVERN_UNROLL
      for (int j = 0; j < kOwnHeads; ++j) {
        const int64_t index = at.of_tile + min(query + OwnHead(j), params.window - 1);
        own[j] = Exponential(params, own[j], params.largest[index]);
      }
      total = AddShares(total, own, params.sums + at.of_tile + query,
                        min(kHeads, params.window - query));
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
  KVERN_SHARED(float, of_warps, kWarps* kHeads);
  KVERN_SHARED(float, terms, kHeads* kTile);
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
      Sums<T, access>(params, at, reference, {of_warps, terms});
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

cudaError_t LaunchWindowSums(const WindowAttentionParams& params, cudaStream_t stream) {
  return LaunchPass<Pass::kSums>(params, stream);
}
cudaError_t LaunchWindowShares(const WindowAttentionParams& params, cudaStream_t stream) {
  return LaunchPass<Pass::kShares>(params, stream);
}

}  // namespace kvern::cuda
