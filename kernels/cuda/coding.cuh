// What encode and decode do alike on the device: where a block of threads works, the angles of a
// token, the turned mean, and the vectors that a pair of threads stores.
#ifndef KVERN_KERNELS_CUDA_CODING_CUH_
#define KVERN_KERNELS_CUDA_CODING_CUH_

#include <cstdint>

#include "kernels/base/band_rotation.h"
#include "kernels/base/coding.h"
#include "kernels/cuda/coded_row.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/hadamard.cuh"
#include "kernels/cuda/lm4_cell.h"
#include "kernels/cuda/row.cuh"

namespace kvern::cuda {

inline constexpr int kCodingThreads = 128;

// One row of a packed table with what its indices name.
struct Block {
  CodedRow row;
  CodedSequence sequence;
  KvLayer layer;
  std::byte* codes;
  Float16* scales;  // unused by raw16

  __device__ int32_t Source(int32_t token) const { return sequence.sources[row.sources + token]; }
};
__device__ inline Block BlockAt(const CodingParams& params, int64_t index) {
  Block block;
  block.row = params.rows[index];
  block.sequence = params.sequences[block.row.sequence];
  block.layer = params.layers[block.row.kv];
  block.codes = block.sequence.packed + block.row.codes;
  block.scales = reinterpret_cast<Float16*>(block.codes + block.row.scales);
  return block;
}

__device__ inline RotationRow AnglesAt(const CodingParams& params, const CodedRow& row,
                                       int32_t slot) {
  const DeviceRotation& rotation = params.rotations[row.sequence];
  const int64_t angle = rotation.Row(row.layer, row.head, slot);
  return {rotation.layout, rotation.bands, rotation.cosine + angle * rotation.bands,
          rotation.sine + angle * rotation.bands};
}

// The un-rotated mean of the block's head, to shared memory. All threads of the block take part; a
// barrier has to follow.
__device__ inline void LoadMean(const Block& block, int32_t head_dim, float* mean) {
  const Float16* from =
      block.sequence.mean_key +
      (int64_t{block.row.layer} * block.sequence.kv_heads + block.row.head) * head_dim;
  for (int32_t d = threadIdx.x; d < head_dim; d += kCodingThreads) mean[d] = FiniteMean(from[d]);
}

// Element d of the mean, turned by `angles`.
__device__ inline float TurnedMean(const float* mean, const RotationRow& angles, int32_t d) {
  if (d >= 2 * angles.bands) return mean[d];
  const bool half = angles.layout == RopeLayout::kHalf;
  const int32_t band = half ? (d < angles.bands ? d : d - angles.bands) : d / 2;
  const Band turned = RotateBand({mean[angles.RealDim(band)], mean[angles.ImagDim(band)]},
                                 angles.cosine[band], angles.sine[band]);
  return d == angles.RealDim(band) ? turned.real : turned.imag;
}

// Eight floats from an address that is a multiple of 16 bytes.
__device__ inline void LoadFloats(const float* from, float (&x)[kOctet]) {
  const Vector16 bits[2] = {Load(from), Load(from + kOctet / 2)};
  memcpy(x, bits, sizeof(x));
}

// x += factor * turned mean, each product exact: factor is 1 or -1. For the half layout with every
// coordinate rotated, so that both coordinates of a band are in one thread.
template <int kSteps>
__device__ inline void PairAddMean(const float* mean, const RotationRow& angles, float factor,
                                   PairRow<kSteps>& x) {
  const int32_t own = threadIdx.x % 2 * kOctet;
  KVERN_UNROLL
  for (int s = 0; s < kSteps / 2; ++s) {
    const int32_t first = s * kStep + own;
    float real[kOctet];
    float imag[kOctet];
    float cosine[kOctet];
    float sine[kOctet];
    LoadFloats(mean + first, real);
    LoadFloats(mean + first + kSteps / 2 * kStep, imag);
    LoadOctet<float, RowAccess::kVector>(reinterpret_cast<const std::byte*>(angles.cosine), 4,
                                         first, cosine);
    LoadOctet<float, RowAccess::kVector>(reinterpret_cast<const std::byte*>(angles.sine), 4, first,
                                         sine);
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      const Band turned = RotateBand({real[e], imag[e]}, cosine[e], sine[e]);
      x[s][e] = fmaf(factor, turned.real, x[s][e]);
      x[s + kSteps / 2][e] = fmaf(factor, turned.imag, x[s + kSteps / 2][e]);
    }
  }
}

// A row of codes is a run of 16-byte vectors, made of two words of the even thread and two of the
// odd one. They exchange halves, so that of two neighbouring vectors the even thread has the first
// and the odd one the second: `own` are a thread's words of both (first vector first), the result
// is its whole vector.
enum class WordOrder : uint8_t {
  kAlternating,  // lm4: the threads' words take turns
  kHalves,       // i8t: the even thread's come first
};
template <WordOrder order>
__device__ inline Vector16 JoinWords(bool odd, const uint32_t (&own)[4]) {
  Vector16 joined;
  KVERN_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t mine = odd ? own[2 + i] : own[i];
    const uint32_t other = __shfl_xor_sync(kAllLanes, odd ? own[i] : own[2 + i], 1);
    const int even_at = order == WordOrder::kAlternating ? 2 * i : i;
    const int odd_at = order == WordOrder::kAlternating ? 2 * i + 1 : 2 + i;
    joined.words[even_at] = odd ? other : mine;
    joined.words[odd_at] = odd ? mine : other;
  }
  return joined;
}
// The way back: a thread's words of both vectors from its own vector.
template <WordOrder order>
__device__ inline void SplitWords(bool odd, const Vector16& joined, uint32_t (&own)[4]) {
  KVERN_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int even_at = order == WordOrder::kAlternating ? 2 * i : i;
    const int odd_at = order == WordOrder::kAlternating ? 2 * i + 1 : 2 + i;
    const uint32_t mine = odd ? joined.words[odd_at] : joined.words[even_at];
    const uint32_t other =
        __shfl_xor_sync(kAllLanes, odd ? joined.words[even_at] : joined.words[odd_at], 1);
    own[i] = odd ? other : mine;
    own[2 + i] = odd ? mine : other;
  }
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_CODING_CUH_
