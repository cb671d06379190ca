// A key's expected logit under the calibrated queries: a dot product of the centred key per query
// head and column, and a term that only sees the length of each band. As ref/tri_attention.cc.
#include <algorithm>

#include "kernels/cuda/centred_dots.cuh"
#include "kernels/cuda/row.cuh"
#include "kernels/cuda/token_sum.cuh"
#include "kernels/cuda/tri_attention.h"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRound = kThreads / 2;  // tokens: two threads share one
constexpr int kMaxHeadDim = 1024;

// What registers allow without spilling.
constexpr int BlocksPerProcessor(int octets) { return octets == 8 ? 2 : 3; }

__device__ inline float BandLength(float re, float im) { return sqrtf(fmaf(re, re, im * im)); }

// Lengths of the thread's bands, 8..15 of every 16 or 0..7: in registers before any sum begins, as
// a root in between would push sums out of theirs.
template <class Key, int kOctets>
struct BandLengths {
  float values[kOctets / 2][kOctet];
  __device__ explicit BandLengths(const Key& key, const TriAttentionParams&) {
    KVERN_UNROLL
    for (int o = 0; o < kOctets / 2; ++o) {
      float re[kOctet];
      float im[kOctet];
      key.Get(o, re);
      key.Get(o + kOctets / 2, im);
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) values[o][e] = BandLength(re[e], im[e]);
    }
  }
};
template <class Key>
struct BandLengths<Key, 0> {
  __device__ explicit BandLengths(const Key&, const TriAttentionParams&) {}
};

// <w, lengths> per head, by the f32 lanes of ruling 6 over the bands.
template <int kOctets, class Key>
__device__ inline void SpreadDots(const TriAttentionParams& params, const Key& key,
                                  const BandLengths<Key, kOctets>& lengths, const HeadVectors& w,
                                  float (&dots)[kOwnHeads]) {
  float lanes[kHeads][kOctet] = {};
  if constexpr (kOctets > 0) {
    KVERN_UNROLL
    for (int o = 0; o < kOctets / 2; ++o) {
      KVERN_UNROLL
      for (int h = 0; h < kHeads; ++h) {
        float of_head[kOctet];
        LoadFloats(w.Of(h) + Key::FirstDim(o), of_head);
        KVERN_UNROLL
        for (int e = 0; e < kOctet; ++e) {
          lanes[h][e] = fmaf(lengths.values[o][e], of_head[e], lanes[h][e]);
        }
      }
    }
  } else {
    const bool half = params.layout == RopeLayout::kHalf;
    for (int o = 0; Key::FirstDim(o) < params.bands; ++o) {
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        const int32_t band = Key::FirstDim(o) + e;
        if (band >= params.bands) continue;
        const float length = BandLength(key.At(half ? band : 2 * band),
                                        key.At(half ? band + params.bands : 2 * band + 1));
        KVERN_UNROLL
        for (int h = 0; h < kHeads; ++h) lanes[h][e] = fmaf(length, w.Of(h)[band], lanes[h][e]);
      }
    }
  }
  OwnHeadSums(lanes, dots);
}

// Where a block's vectors are: u [group, columns, dims], w [group, bands].
struct BlockVectors {
  const float* u;
  const float* w;
  const float* reference;  // [head_dim]
};

// Raw scores of this thread's heads of the chunk that begins at `first_head`.
template <int kOctets, class Key>
__device__ inline void RawScores(const TriAttentionParams& params, const Key& key,
                                 const BlockVectors& vectors, int64_t row, int32_t first_head,
                                 double (&raw)[kOwnHeads]) {
  const int32_t dims = kOctets > 0 ? kOctets * kStep : 2 * params.bands;
  const int32_t heads = min(kHeads, params.group - first_head);
  KVERN_UNROLL
  for (int j = 0; j < kOwnHeads; ++j) raw[j] = -std::numeric_limits<double>::infinity();
  for (int32_t column = 0; column < params.columns; ++column) {
    const int64_t at = int64_t{first_head} * params.columns + column;
    float dots[kOwnHeads];
    CentredDots<kOctets>(key, vectors.reference,
                         {vectors.u + at * dims, int64_t{params.columns} * dims, heads}, dims,
                         dots);
    const double* constants = params.constants + (row * params.group) * params.columns + at;
    KVERN_UNROLL
    for (int j = 0; j < kOwnHeads; ++j) {
      const double logit = double{dots[j]} + constants[min(OwnHead(j), heads - 1) * params.columns];
      raw[j] = logit > raw[j] || logit != logit ? logit : raw[j];
    }
  }
  const BandLengths<Key, kOctets> lengths(key, params);
  float spreads[kOwnHeads];
  SpreadDots<kOctets>(params, key, lengths,
                      {vectors.w + int64_t{first_head} * params.bands, params.bands, heads},
                      spreads);
  KVERN_UNROLL
  for (int j = 0; j < kOwnHeads; ++j) {
    raw[j] += double{spreads[j]};
    if (!isfinite(raw[j])) raw[j] = std::numeric_limits<double>::quiet_NaN();
  }
}

// The tile's sum of each head of the chunk: half a warp per head, a thread per lane.
__device__ inline void SumTile(const TriAttentionParams& params, const Tile& tile,
                               const double (&raw)[kHeads][kTile], int32_t first_head) {
  const int32_t head = static_cast<int32_t>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  if (threadIdx.x >= kHeads * kLanes) return;  // whole warps
  const HeadRow row = params.rows.rows[tile.row];
  const uint8_t* candidates = params.candidates[tile.row].data;
  double sum = 0;
  int32_t count = 0;
  for (int i = 0; i < kTile / kLanes; ++i) {
    const int32_t within = lane + i * kLanes;
    const int32_t token = static_cast<int32_t>(tile.first) + within;
    if (token >= row.tokens || candidates[token] == 0 || !isfinite(raw[head][within])) continue;
    sum += raw[head][within];
    ++count;
  }
  sum = HalfWarpTreeSum(sum);
  count = HalfWarpCount(count);
  if (lane == 0 && first_head + head < params.group) {
    params.tile_spreads[int64_t{blockIdx.x} * params.group + first_head + head] = {sum, count};
  }
}

// Vectors and reference key in shared memory, where all threads read them at once.
template <bool kHeld>
__device__ inline BlockVectors HoldVectors(const TriAttentionParams& params, const Tile& tile,
                                           const HeadRow& row, float* held, float* reference) {
  const int64_t first_query = int64_t{row.layer} * params.q_heads + row.head * params.group;
  const int32_t u_size = params.columns * 2 * params.bands;  // of one query head
  const TriAttentionQueries queries = params.queries[row.sequence];
  const float* u = queries.u + first_query * u_size;
  const float* w = queries.w + first_query * params.bands;
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < head_dim; d += kThreads) {
    reference[d] = params.reference[int64_t{tile.row} * head_dim + d];
  }
  if (!kHeld) return {u, w, reference};
  float* const held_w = held + params.group * u_size;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < params.group * u_size; i += kThreads) {
    held[i] = u[i];
  }
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < params.group * params.bands;
       i += kThreads) {
    held_w[i] = w[i];
  }
  return {held, held_w, reference};
}

// Rounds of 64 tokens per chunk of heads.
template <class T, RowAccess access, int kOctets, bool kHeld>
__global__ void __launch_bounds__(kThreads, BlocksPerProcessor(kOctets))
    RawScoresKernel(TriAttentionParams params) {
  KVERN_SHARED(float, reference, kMaxHeadDim);
  KVERN_SHARED(double, raw_of_tile, kHeads* kTile);
  KVERN_DYNAMIC_SHARED(float, held);
  auto& raw_tile = *reinterpret_cast<double(*)[kHeads][kTile]>(raw_of_tile);
  const Tile tile = params.rows.tiles[blockIdx.x];
  const HeadRow row = params.rows.rows[tile.row];
  const KvLayer keys = params.rows.keys.layers[row.kv];
  const BlockVectors vectors = HoldVectors<kHeld>(params, tile, row, held, reference);
  __syncthreads();
  for (int32_t head = 0; head < params.group; head += kHeads) {
    for (int32_t round = 0; round < kTile; round += kRound) {
      const int32_t within = round + static_cast<int32_t>(threadIdx.x) / 2;
      const int32_t token = static_cast<int32_t>(tile.first) + within;
      double raw[kOwnHeads] = {};
      if (static_cast<int32_t>(tile.first) + round < row.tokens) {  // the same for the whole block
        const KeyOctets<T, access, kOctets> key(keys.Address(row.head, min(token, row.tokens - 1)),
                                                keys.dim_stride);
        RawScores<kOctets>(params, key, vectors, tile.row, head, raw);
      }
      KVERN_UNROLL
      for (int j = 0; j < kOwnHeads; ++j) {
        raw_tile[OwnHead(j)][within] = raw[j];
        if (head + OwnHead(j) >= params.group || token >= row.tokens) continue;
        params.raw[(int64_t{blockIdx.x} * params.group + head + OwnHead(j)) * kTile + within] =
            raw[j];
      }
    }
    __syncthreads();
    SumTile(params, tile, raw_tile, head);
    __syncthreads();
  }
}

constexpr int kMostShared = 96 << 10;  // bytes of vectors: two blocks fit on every device

template <class T, RowAccess access, int kOctets>
cudaError_t LaunchRaw(const TriAttentionParams& params, cudaStream_t stream) {
  const int64_t bytes =
      int64_t{params.group} * (params.columns * 2 + 1) * params.bands * sizeof(float);
  // A kernel that names dynamic shared memory has some.
  LaunchShape launch = {params.rows.tile_count, kThreads, sizeof(Vector16)};
  if (bytes > kMostShared) {
    return Launch(&RawScoresKernel<T, access, 0, false>, launch, params, stream);
  }
  const auto kernel = &RawScoresKernel<T, access, kOctets, true>;
  if (const cudaError_t error = AllowShared(kernel, kMostShared); error != cudaSuccess) {
    return error;
  }
  launch.shared_bytes = static_cast<int>(std::max<int64_t>(bytes, launch.shared_bytes));
  return Launch(kernel, launch, params, stream);
}

// Rows that fit into registers: half layout, every dim rotated, bf16 (f16 is widened in software).
template <class T>
cudaError_t LaunchTyped(const TriAttentionParams& params, cudaStream_t stream) {
  const RowShape& shape = params.rows.keys.shape;
  if (shape.access == RowAccess::kElements) {
    return LaunchRaw<T, RowAccess::kElements, 0>(params, stream);
  }
  if constexpr (std::is_same_v<T, BFloat16>) {
    const bool whole = params.layout == RopeLayout::kHalf && 2 * params.bands == shape.head_dim;
    if (whole && shape.head_dim == 128) return LaunchRaw<T, RowAccess::kVector, 8>(params, stream);
    if (whole && shape.head_dim == 64) return LaunchRaw<T, RowAccess::kVector, 4>(params, stream);
  }
  return LaunchRaw<T, RowAccess::kVector, 0>(params, stream);
}

}  // namespace

cudaError_t LaunchRawScores(const TriAttentionParams& params, cudaStream_t stream) {
  return VisitDType(params.rows.keys.shape.dtype, [&](auto tag) {
    return LaunchTyped<typename decltype(tag)::type>(params, stream);
  });
}

}  // namespace kvern::cuda
