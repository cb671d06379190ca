// Encoding with a row in the registers of two threads: 128 threads code the 64 tokens of a block at
// once. Only stride 8 of the rotation and the last step of a lane sum cross threads.
#ifndef KVERN_KERNELS_CUDA_ENCODE_PAIR_CUH_
#define KVERN_KERNELS_CUDA_ENCODE_PAIR_CUH_

#include <cstdint>

#include "kernels/cuda/encode_shared.cuh"

namespace kvern::cuda {

template <class T, int kHeadDim>
class PairEncoder {
 public:
  static constexpr int kSteps = kHeadDim / kStep;

  __device__ PairEncoder(const CodingParams& params, const Block& block, const EncodeShared& shared)
      : params_(params),
        block_(block),
        shared_(shared),
        odd_(threadIdx.x % 2 != 0),
        token_(static_cast<int32_t>(threadIdx.x / 2)),
        live_(token_ < block.row.tokens),
        // The last token stands in for those that a short block lacks.
        slot_(block.Source(live_ ? token_ : block.row.tokens - 1)),
        row_(block.layer.Address(block.row.head, slot_)) {}

  // All threads of the block take part.
  __device__ void Encode() {
    if (block_.row.codec == CodecId::kRaw16) {
      CopyRaw();
      return;
    }
    KVERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      LoadOctet<T, RowAccess::kVector>(row_, sizeof(T), First(s), x_[s]);
    }
    float lanes[kOctet] = {};
    Sanitise(lanes);
    const float norm = PairTreeSum(lanes);
    float squared_length = norm;
    if (block_.row.rope_mean) {
      PairAddMean<kSteps>(shared_.mean, AnglesAt(params_, block_.row, slot_), -1.0f, x_);
      Clear(lanes);
      Accumulate(lanes);
      squared_length = PairTreeSum(lanes);
    }
    if (block_.row.hadamard) PairRotate<kSteps>(odd_ ? -1.0f : 1.0f, x_);
    const CodeScale scale = block_.row.codec == CodecId::kI8t ? CodeI8() : CodeLm4(squared_length);
    Clear(lanes);
    Accumulate(lanes);
    const float error = PairTreeSum(lanes);
    if (odd_ || !live_) return;
    block_.scales[token_] = scale.stored;
    shared_.norms[token_] = norm;
    shared_.errors[token_] = error;
  }

 private:
  __device__ int32_t First(int s) const { return s * kStep + (odd_ ? kOctet : 0); }

  __device__ void CopyRaw() const {
    KVERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      const int64_t at = First(s) * static_cast<int64_t>(sizeof(T));
      const Vector16 bits = LoadReadOnly(row_ + at);
      if (live_) Store(block_.codes + token_ * block_.row.code_row_bytes + at, bits);
    }
  }

  __device__ void Accumulate(float (&lanes)[kOctet]) const {
    KVERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        lanes[e] = fmaf(x_[s][e], x_[s][e], lanes[e]);
      }
    }
  }

  __device__ static void Clear(float (&lanes)[kOctet]) {
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) lanes[e] = 0;
  }

  // NaN becomes 0, what is too large is clamped; `lanes` become those of |x|^2. A sum below the
  // square of the largest value says that there is neither, without a look at each.
  __device__ void Sanitise(float (&lanes)[kOctet]) {
    Accumulate(lanes);
    float sum = 0;
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) sum += lanes[e];
    if (sum < kLargestCoded * kLargestCoded) return;
    unsigned count = 0;
    KVERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        if (fabsf(x_[s][e]) <= kLargestCoded) continue;
        ++count;
        x_[s][e] = Sanitised(x_[s][e]);
      }
    }
    if (count > 0 && live_) atomicAdd(shared_.nonfinite, count);
    Clear(lanes);
    Accumulate(lanes);
  }

  // x becomes what the codes leave over.
  __device__ CodeScale CodeI8() {
    float largest = 0.0f;
    KVERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) largest = fmaxf(largest, fabsf(x_[s][e]));
    }
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
    const CodeScale scale = I8Scale(largest);
    const float inverse = InverseScale(scale.value);
    KVERN_UNROLL
    for (int s = 0; s < kSteps; s += 2) {
      uint32_t words[4] = {};  // two of step s, two of the next one
      KVERN_UNROLL
      for (int i = 0; i < 2 * kOctet; ++i) {
        float& value = x_[s + i / kOctet][i % kOctet];
        const I8Code code = I8CodeOf(value * inverse);
        words[i / 4] |= (internal::BitsFromFloat(code.shifted) & 0xFF) << (i % 4 * 8);
        value = fmaf(-scale.value, code.code, value);
      }
      StoreVector(s + (odd_ ? 1 : 0), JoinWords<WordOrder::kHalves>(odd_, words));
    }
    return scale;
  }

  // As CodeI8; `squared_length` is that of the row before its rotation.
  __device__ CodeScale CodeLm4(float squared_length) {
    const float normalizer = Lm4Normalizer(squared_length, kHeadDim);
    Lm4Offsets codes[kSteps];
    float lanes[kOctet] = {};
    // Where squares were too small for f32, the length is less than that of the row.
    if (squared_length < 0x1p-100f) {
      FindLevels<true>(normalizer, codes, lanes);
    } else {
      FindLevels<false>(normalizer, codes, lanes);
    }
    const CodeScale scale = Lm4Scale(squared_length, PairTreeSum(lanes));
    KVERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        const float level = AtOffset(shared_.levels, codes[s].At(e));
        x_[s][e] = fmaf(-scale.value, level, x_[s][e]);
      }
    }
    KVERN_UNROLL
    for (int s = 0; s < kSteps; s += 4) {
      uint32_t words[4];
      KVERN_UNROLL
      for (int i = 0; i < 4; ++i) {
        words[i] = normalizer == 0.0f ? 0 : codes[s + i].Word();
      }
      StoreVector(s / 2 + (odd_ ? 1 : 0), JoinWords<WordOrder::kAlternating>(odd_, words));
    }
    return scale;
  }

  // The codes of the normalized row, and the lanes of the squared length of its levels.
  template <bool kTiny>
  __device__ void FindLevels(float normalizer, Lm4Offsets (&codes)[kSteps],
                             float (&lanes)[kOctet]) const {
    KVERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        const float value = x_[s][e] * normalizer;
        const uint32_t offset = Lm4OffsetOf(kTiny ? WithinLm4Reach(value) : value, shared_.cells);
        const float level = AtOffset(shared_.levels, offset);
        lanes[e] = fmaf(level, level, lanes[e]);
        codes[s].Add(e, offset);
      }
    }
  }

  __device__ void StoreVector(int index, const Vector16& vector) const {
    if (!live_) return;
    Store(block_.codes + token_ * block_.row.code_row_bytes + index * kPlaneAlign, vector);
  }

  const CodingParams& params_;
  const Block& block_;
  const EncodeShared& shared_;
  const bool odd_;
  const int32_t token_;
  const bool live_;
  const int32_t slot_;
  const std::byte* const row_;
  PairRow<kSteps> x_;
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ENCODE_PAIR_CUH_
