// Decoding with a row in the registers of two threads: 128 threads restore the 64 tokens of a block
// at once.
#ifndef KVERN_KERNELS_CUDA_DECODE_PAIR_CUH_
#define KVERN_KERNELS_CUDA_DECODE_PAIR_CUH_

#include <cstdint>

#include "kernels/cuda/decode_shared.cuh"

namespace kvern::cuda {

template <class T, int kHeadDim>
class PairDecoder {
 public:
  static constexpr int kSteps = kHeadDim / kStep;

  __device__ PairDecoder(const CodingParams& params, const Block& block, const DecodeShared& shared)
      : params_(params),
        block_(block),
        shared_(shared),
        odd_(threadIdx.x % 2 != 0),
        live_(static_cast<int32_t>(threadIdx.x / 2) < block.row.tokens),
        // The last token stands in for those that a short block lacks.
        token_(live_ ? static_cast<int32_t>(threadIdx.x / 2) : block.row.tokens - 1),
        slot_(block.row.first_slot + token_),
        codes_(block.codes + token_ * block.row.code_row_bytes),
        row_(block.layer.Address(block.row.head, slot_)) {}

  // All threads of the block take part.
  __device__ void Decode() {
    if (block_.row.codec == CodecId::kRaw16) {
      CopyRaw();
      return;
    }
    const float scale = ToFloat(block_.scales[token_]);
    if (block_.row.codec == CodecId::kI8t) {
      RestoreI8(scale);
    } else {
      RestoreLm4(scale);
    }
    if (block_.row.hadamard) PairUnrotate<kSteps>(odd_ ? -1.0f : 1.0f, x_);
    if (block_.row.rope_mean) {
      PairAddMean<kSteps>(shared_.mean, AnglesAt(params_, block_.row, slot_), 1.0f, x_);
    }
    Write();
  }

 private:
  __device__ int64_t Offset(int s) const {
    return (s * kStep + (odd_ ? kOctet : 0)) * static_cast<int64_t>(sizeof(T));
  }

  __device__ void CopyRaw() const {
    KVERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      const Vector16 bits = LoadReadOnly(codes_ + Offset(s));
      if (live_) Store(row_ + Offset(s), bits);
    }
  }

  // x = codes * scale, in the space that was coded.
  __device__ void RestoreI8(float scale) {
    KVERN_UNROLL
    for (int s = 0; s < kSteps; s += 2) {
      uint32_t words[4];
      SplitWords<WordOrder::kHalves>(odd_, LoadVector(s + (odd_ ? 1 : 0)), words);
      KVERN_UNROLL
      for (int i = 0; i < 2 * kOctet; ++i) {
        const auto code = static_cast<int8_t>(words[i / 4] >> (i % 4 * 8) & 0xFF);
        x_[s + i / kOctet][i % kOctet] = scale * static_cast<float>(code);
      }
    }
  }
  __device__ void RestoreLm4(float scale) {
    KVERN_UNROLL
    for (int s = 0; s < kSteps; s += 4) {
      uint32_t words[4];
      SplitWords<WordOrder::kAlternating>(odd_, LoadVector(s / 2 + (odd_ ? 1 : 0)), words);
      KVERN_UNROLL
      for (int i = 0; i < 4; ++i) {
        KVERN_UNROLL
        for (int e = 0; e < kOctet; ++e) {
          x_[s + i][e] = scale * AtOffset(shared_.levels, Lm4Offsets::Of(words[i]).At(e));
        }
      }
    }
  }
  __device__ Vector16 LoadVector(int index) const {
    return LoadReadOnly(codes_ + index * kPlaneAlign);
  }

  __device__ void Write() const {
    KVERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      T values[kOctet];
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) values[e] = Rounded<T>(x_[s][e]);
      Vector16 bits;
      static_assert(sizeof(bits) == sizeof(values));
      memcpy(&bits, values, sizeof(bits));
      if (live_) Store(row_ + Offset(s), bits);
    }
  }

  const CodingParams& params_;
  const Block& block_;
  const DecodeShared& shared_;
  const bool odd_;
  const bool live_;
  const int32_t token_;
  const int32_t slot_;
  const std::byte* const codes_;
  std::byte* const row_;
  PairRow<kSteps> x_;
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_DECODE_PAIR_CUH_
