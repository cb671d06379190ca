// Sign-folded vector codes by 16 threads a row: a thread searches for two blocks of 4 coordinates
// at once, and all threads read the same vector, which shared memory gives to all of them in one
// go.
#ifndef KVERN_KERNELS_CUDA_SFV_CUH_
#define KVERN_KERNELS_CUDA_SFV_CUH_

#include <cstdint>

#include "kernels/base/sfv_rules.h"
#include "kernels/cuda/planes.cuh"

namespace kvern::cuda {

inline constexpr int kSfvVectors = 256;
inline constexpr int kSfvAtOnce = 2;  // blocks that a thread searches for

// In shared memory.
struct SfvShared {
  Vector16* magnitudes;  // [kSfvVectors]
  float* half_squares;   // [kSfvVectors]
};

__device__ inline bool IsSfv(CodecId codec) {
  return codec == CodecId::kSfv2 || codec == CodecId::kSfv3;
}
__device__ inline int SfvCount(CodecId codec) { return codec == CodecId::kSfv2 ? 16 : kSfvVectors; }
// `words` are those of sfv3, then those of sfv2.
__device__ inline const uint32_t* SfvWordsAt(CodecId codec, const uint32_t* words) {
  return codec == CodecId::kSfv2 ? words + kSfvVectors : words;
}

// All threads of the block; a barrier has to follow.
__device__ inline void LoadSfv(CodecId codec, const uint32_t* words, const SfvShared& shared) {
  if (!IsSfv(codec)) return;
  for (int n = static_cast<int>(threadIdx.x); n < SfvCount(codec); n += kCodingThreads) {
    const SfvVector vector = SfvVectorOf(SfvWordsAt(codec, words)[n]);
    Vector16 bits;
    memcpy(&bits, vector.magnitude, sizeof(bits));
    shared.magnitudes[n] = bits;
    shared.half_squares[n] = vector.half_square;
  }
}
// The same for decode, which reads a byte of a vector at a time.
__device__ inline void LoadSfvWords(CodecId codec, const uint32_t* words, uint32_t* shared) {
  if (!IsSfv(codec)) return;
  for (int n = static_cast<int>(threadIdx.x); n < SfvCount(codec); n += kCodingThreads) {
    shared[n] = SfvWordsAt(codec, words)[n];
  }
}
__device__ inline SfvVector SfvVectorAt(const SfvShared& shared, int n) {
  SfvVector vector;
  const Vector16 bits = shared.magnitudes[n];
  memcpy(vector.magnitude, &bits, sizeof(bits));
  vector.half_square = shared.half_squares[n];
  return vector;
}

class SfvEncoder {
 public:
  __device__ SfvEncoder(CodecId codec, const SfvShared& shared, const GroupCode& code)
      : codec_(codec), shared_(shared), code_(code), blocks_(code.head_dim / kSfvCoords) {}

  // Codes y, which becomes what the codes leave over; x becomes the levels. `squared_length` is
  // that of the row before its rotation. All threads of the warp take part.
  __device__ void Encode(float squared_length) {
    const float normalizer = Lm4Normalizer(squared_length, code_.head_dim);
    __syncwarp();  // the threads of a block do not own its coordinates
    for (int32_t first = 0; first < blocks_; first += kSfvAtOnce * kLanes) {
      Search(first + code_.row.lane, normalizer);
    }
    __syncwarp();
    const float* const levels = code_.row.x;
    float* const y = code_.row.y;
    float sum = 0.0f;
    for (int32_t d = code_.row.lane; d < code_.head_dim; d += kLanes) {
      const float other = codec_ == CodecId::kSfv2 ? y[d] * normalizer : levels[d];
      sum = fmaf(levels[d], other, sum);
    }
    sum = GroupTreeSum(sum);
    const CodeScale scale = codec_ == CodecId::kSfv2
                                ? SfvUnbiasedScale(squared_length, code_.head_dim, sum)
                                : Lm4Scale(squared_length, sum);
    for (int32_t d = code_.row.lane; d < code_.head_dim; d += kLanes) {
      y[d] = fmaf(-scale.value, levels[d], y[d]);
    }
    if (code_.row.lane == 0 && code_.live) PutHalf(code_.Scales(), code_.token, scale);
  }

 private:
  // Blocks `block` and block + 16; those beyond the row are searched for in vain.
  __device__ void Search(int32_t block, float normalizer) {
    float x[kSfvAtOnce][kSfvCoords];
    float least[kSfvAtOnce];
    int index[kSfvAtOnce];
    KVERN_UNROLL
    for (int b = 0; b < kSfvAtOnce; ++b) {
      const int32_t first = min(block + b * kLanes, blocks_ - 1) * kSfvCoords;
      KVERN_UNROLL
      for (int j = 0; j < kSfvCoords; ++j) x[b][j] = code_.row.y[first + j] * normalizer;
      least[b] = SfvDistance(SfvVectorAt(shared_, 0), x[b]);
      index[b] = 0;
    }
    for (int n = 1; n < SfvCount(codec_); ++n) {
      const SfvVector vector = SfvVectorAt(shared_, n);
      KVERN_UNROLL
      for (int b = 0; b < kSfvAtOnce; ++b) {
        const float distance = SfvDistance(vector, x[b]);
        if (distance < least[b]) index[b] = n;
        least[b] = fminf(distance, least[b]);
      }
    }
    KVERN_UNROLL
    for (int b = 0; b < kSfvAtOnce; ++b) {
      Put(block + b * kLanes, index[b], normalizer != 0.0f, x[b]);
    }
  }

  // Levels into x of the row; index and signs to the planes. Blocks of a pair share a byte of
  // signs; a row has an even number of blocks.
  __device__ void Put(int32_t block, int index, bool stores, const float (&x)[kSfvCoords]) {
    const SfvVector vector = SfvVectorAt(shared_, index);
    const bool inside = block < blocks_;
    uint32_t signs = 0;
    KVERN_UNROLL
    for (int j = 0; j < kSfvCoords; ++j) {
      const bool negative = x[j] < 0.0f;
      signs |= negative ? 1u << j : 0u;
      if (!inside) continue;
      code_.row.x[block * kSfvCoords + j] = negative ? -vector.magnitude[j] : vector.magnitude[j];
    }
    const uint32_t other = __shfl_xor_sync(kAllLanes, signs, 1);
    if (!inside || !stores || !code_.live) return;
    if (codec_ == CodecId::kSfv2) {
      code_.Codes()[block] = static_cast<std::byte>(index << kSfvCoords | signs);
      return;
    }
    code_.Codes()[block] = static_cast<std::byte>(index);
    if (block % 2 != 0) return;
    code_.Signs()[block / 2] = static_cast<std::byte>(signs | other << kSfvCoords);
  }

  const CodecId codec_;
  const SfvShared& shared_;
  const GroupCode& code_;
  const int32_t blocks_;
};

// Element d of a row of codes; `words` are those of the codec, in shared memory.
__device__ inline float RestoredSfv(const GroupCode& code, CodecId codec, const uint32_t* words,
                                    int32_t d) {
  const int32_t block = d / kSfvCoords;
  const uint32_t byte = LoadByte(code.Codes() + block);
  const bool joined = codec == CodecId::kSfv2;
  const uint32_t signs =
      joined ? byte : LoadByte(code.Signs() + block / 2) >> block % 2 * kSfvCoords;
  const uint32_t word = words[joined ? byte >> kSfvCoords : byte];
  const int32_t j = d % kSfvCoords;
  const float magnitude = static_cast<float>(word >> (8 * j) & 0xFFu) * kSfvStep;
  const float level = (signs >> j & 1) != 0 ? -magnitude : magnitude;
  return HalfAt(code.Scales(), code.token) * level;
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_SFV_CUH_
