// A key's expected logit under the calibrated queries: a dot product of the centred key per query
// head and column, and a term that only sees the length of each band. As ref/tri_attention.cc.
#include "kernels/cuda/row.cuh"
#include "kernels/cuda/token_sum.cuh"
#include "kernels/cuda/tri_attention.h"

namespace kvern::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRound = kThreads / 2;  // tokens: two threads share one
constexpr int kHeads = 4;             // query heads that share one walk over a key
constexpr int kMaxHeadDim = 1024;

// A row's octets of this thread: o is that of dims 16 o + 8 (odd thread). With kOctets > 0 they
// wait in registers, packed as they lie, so that memory is read once.
template <class T, RowAccess access, int kOctets>
class KeyOctets {
 public:
  __device__ KeyOctets(const std::byte* row, int64_t dim_stride)
      : row_(row), dim_stride_(dim_stride) {
    KVERN_UNROLL
    for (int o = 0; o < kOctets; ++o) bits_[o] = LoadReadOnly(row + FirstDim(o) * sizeof(T));
  }
  __device__ static int32_t FirstDim(int o) {
    return o * kStep + static_cast<int32_t>(threadIdx.x % 2) * kOctet;
  }
  __device__ __forceinline__ void Get(int o, float (&x)[kOctet]) const {
    T values[kOctet];
    memcpy(values, &bits_[o], sizeof(values));
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) x[e] = ToFloat(values[e]);
  }

 private:
  const std::byte* row_;
  int64_t dim_stride_;
  Vector16 bits_[kOctets];
};

template <class T, RowAccess access>
class KeyOctets<T, access, 0> {
 public:
  __device__ KeyOctets(const std::byte* row, int64_t dim_stride)
      : row_(row), dim_stride_(dim_stride) {}
  __device__ static int32_t FirstDim(int o) {
    return o * kStep + static_cast<int32_t>(threadIdx.x % 2) * kOctet;
  }
  __device__ __forceinline__ void Get(int o, float (&x)[kOctet]) const {
    LoadOctet<T, access>(row_, dim_stride_, FirstDim(o), x);
  }
  __device__ float At(int32_t d) const {
    return ToFloat(*reinterpret_cast<const T*>(row_ + d * dim_stride_));
  }

 private:
  const std::byte* row_;
  int64_t dim_stride_;
};

// Vectors of up to kHeads query heads; a missing one repeats the last, its result is dropped.
struct HeadVectors {
  const float* first;
  int64_t stride;
  int32_t heads;
  __device__ const float* Of(int head) const { return first + min(head, heads - 1) * stride; }
};

// <vector, key - reference> per head, by the f32 lanes of ruling 6 over the first `dims`.
template <int kOctets, class Key>
__device__ inline void CentredDots(const Key& key, const float* reference,
                                   const HeadVectors& vectors, int32_t dims,
                                   float (&dots)[kHeads]) {
  float lanes[kHeads][kOctet] = {};
  const auto step = [&](int o) {
    const int32_t first = Key::FirstDim(o);
    float x[kOctet];
    key.Get(o, x);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) x[e] -= reference[first + e];
    KVERN_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      const float* vector = vectors.Of(h) + first;
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        if (kOctets > 0 || first + e < dims) lanes[h][e] = fmaf(x[e], vector[e], lanes[h][e]);
      }
    }
  };
  if constexpr (kOctets > 0) {
    KVERN_UNROLL
    for (int o = 0; o < kOctets; ++o) step(o);
  } else {
    for (int o = 0; Key::FirstDim(o) < dims; ++o) step(o);
  }
  KVERN_UNROLL
  for (int h = 0; h < kHeads; ++h) dots[h] = PairTreeSum(lanes[h]);
}

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
                                  float (&dots)[kHeads]) {
  float lanes[kHeads][kOctet] = {};
  const auto add = [&](int32_t band, int e, float length) {
    KVERN_UNROLL
    for (int h = 0; h < kHeads; ++h) lanes[h][e] = fmaf(length, w.Of(h)[band], lanes[h][e]);
  };
  if constexpr (kOctets > 0) {
    KVERN_UNROLL
    for (int o = 0; o < kOctets / 2; ++o) {
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) add(Key::FirstDim(o) + e, e, lengths.values[o][e]);
    }
  } else {
    const bool half = params.layout == RopeLayout::kHalf;
    for (int o = 0; Key::FirstDim(o) < params.bands; ++o) {
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        const int32_t band = Key::FirstDim(o) + e;
        if (band >= params.bands) continue;
        add(band, e,
            BandLength(key.At(half ? band : 2 * band),
                       key.At(half ? band + params.bands : 2 * band + 1)));
      }
    }
  }
  KVERN_UNROLL
  for (int h = 0; h < kHeads; ++h) dots[h] = PairTreeSum(lanes[h]);
}

// Raw scores of heads [first_head, first_head + kHeads) of the group.
template <int kOctets, class Key>
__device__ inline void RawScores(const TriAttentionParams& params, const Key& key,
                                 const BandLengths<Key, kOctets>& lengths, int64_t row,
                                 const float* u, const float* w, const float* reference,
                                 int32_t first_head, double (&raw)[kHeads]) {
  const int32_t dims = 2 * params.bands;
  const int32_t heads = min(kHeads, params.group - first_head);
  KVERN_UNROLL
  for (int h = 0; h < kHeads; ++h) raw[h] = -std::numeric_limits<double>::infinity();
  for (int32_t column = 0; column < params.columns; ++column) {
    const int64_t at = int64_t{first_head} * params.columns + column;
    float dots[kHeads];
    CentredDots<kOctets>(key, reference, {u + at * dims, int64_t{params.columns} * dims, heads},
                         dims, dots);
    const double* constants = params.constants + (row * params.group) * params.columns + at;
    KVERN_UNROLL
    for (int h = 0; h < kHeads; ++h) {
      const double logit = double{dots[h]} + constants[min(h, heads - 1) * params.columns];
      raw[h] = logit > raw[h] || logit != logit ? logit : raw[h];
    }
  }
  float spreads[kHeads];
  SpreadDots<kOctets>(params, key, lengths,
                      {w + int64_t{first_head} * params.bands, params.bands, heads}, spreads);
  KVERN_UNROLL
  for (int h = 0; h < kHeads; ++h) {
    raw[h] += double{spreads[h]};
    if (!isfinite(raw[h])) raw[h] = std::numeric_limits<double>::quiet_NaN();
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

// Rounds of 64 tokens per chunk of heads; vectors are read by all threads at once.
template <class T, RowAccess access, int kOctets>
__global__ void __launch_bounds__(kThreads, 3) RawScoresKernel(TriAttentionParams params) {
  KVERN_SHARED(float, reference, kMaxHeadDim);
  KVERN_SHARED(double, raw_of_tile, kHeads* kTile);
  KVERN_DYNAMIC_SHARED(float, vectors);
  auto& raw_tile = *reinterpret_cast<double(*)[kHeads][kTile]>(raw_of_tile);
  const Tile tile = params.rows.tiles[blockIdx.x];
  const HeadRow row = params.rows.rows[tile.row];
  const KvLayer keys = params.rows.keys.layers[row.kv];
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  const int64_t first_query = int64_t{row.layer} * params.q_heads + row.head * params.group;
  const int32_t u_size = params.columns * 2 * params.bands;  // of one query head
  const TriAttentionQueries queries = params.queries[row.sequence];
  const float* u = queries.u + first_query * u_size;
  const float* w = queries.w + first_query * params.bands;
  const bool held = params.shared_vectors;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); held && i < params.group * u_size;
       i += kThreads) {
    vectors[i] = u[i];
  }
  for (int32_t i = static_cast<int32_t>(threadIdx.x); held && i < params.group * params.bands;
       i += kThreads) {
    vectors[params.group * u_size + i] = w[i];
  }
  if (held) {
    u = vectors;
    w = vectors + params.group * u_size;
  }
  for (int32_t d = static_cast<int32_t>(threadIdx.x); d < head_dim; d += kThreads) {
    reference[d] = params.reference[int64_t{tile.row} * head_dim + d];
  }
  __syncthreads();
  for (int32_t head = 0; head < params.group; head += kHeads) {
    for (int32_t round = 0; round < kTile; round += kRound) {
      const int32_t within = round + static_cast<int32_t>(threadIdx.x) / 2;
      const int32_t token = static_cast<int32_t>(tile.first) + within;
      double raw[kHeads] = {};
      if (static_cast<int32_t>(tile.first) + round < row.tokens) {  // the same for the whole block
        const KeyOctets<T, access, kOctets> key(keys.Address(row.head, min(token, row.tokens - 1)),
                                                keys.dim_stride);
        const BandLengths<KeyOctets<T, access, kOctets>, kOctets> lengths(key, params);
        RawScores<kOctets>(params, key, lengths, tile.row, u, w, reference, head, raw);
      }
      KVERN_UNROLL
      for (int h = 0; h < kHeads; ++h) {
        if (static_cast<int>(threadIdx.x % 2) != h % 2) continue;  // the pair shares the writes
        raw_tile[h][within] = raw[h];
        if (head + h >= params.group || token >= row.tokens) continue;
        params.raw[(int64_t{blockIdx.x} * params.group + head + h) * kTile + within] = raw[h];
      }
    }
    __syncthreads();
    SumTile(params, tile, raw_tile, head);
    __syncthreads();
  }
}

constexpr int kMostShared = 96 << 10;  // bytes of vectors: two blocks fit on every device

template <class T, RowAccess access, int kOctets>
cudaError_t LaunchRaw(const TriAttentionParams& asked, cudaStream_t stream) {
  TriAttentionParams params = asked;
  const int64_t bytes =
      int64_t{params.group} * (params.columns * 2 + 1) * params.bands * sizeof(float);
  params.shared_vectors = bytes <= kMostShared;
  const int shared = params.shared_vectors ? static_cast<int>(bytes) : 0;
  const auto kernel = &RawScoresKernel<T, access, kOctets>;
  if (const cudaError_t error = AllowShared(kernel, kMostShared); error != cudaSuccess) {
    return error;
  }
  return Launch(kernel, {params.rows.tile_count, kThreads, shared}, params, stream);
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
