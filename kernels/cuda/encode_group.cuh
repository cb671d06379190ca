// Encoding of any head_dim, dtype, stride and alignment: 16 threads share a row in shared memory,
// thread i of them its virtual lane i. Codes are stored byte by byte.
#ifndef KVERN_KERNELS_CUDA_ENCODE_GROUP_CUH_
#define KVERN_KERNELS_CUDA_ENCODE_GROUP_CUH_

#include <cstdint>

#include "kernels/base/fp8.h"
#include "kernels/cuda/affine.cuh"
#include "kernels/cuda/coding_group.cuh"
#include "kernels/cuda/encode_shared.cuh"
#include "kernels/cuda/sfv.cuh"

namespace kvern::cuda {

template <class T>
class GroupEncoder {
 public:
  __device__ GroupEncoder(const CodingParams& params, const Block& block,
                          const EncodeShared& shared, const GroupRow& row)
      : params_(params),
        block_(block),
        shared_(shared),
        head_dim_(params.shape.head_dim),
        lane_(row.lane),
        x_(row.x),
        y_(row.y) {}

  // All threads of the warp take part; where not `live` they change nothing outside.
  __device__ void Encode(int32_t token, bool live) {
    const int32_t slot = block_.Source(token);
    const std::byte* row = block_.layer.Address(block_.row.head, slot);
    std::byte* codes = block_.codes + token * block_.row.code_row_bytes;
    if (block_.row.codec == CodecId::kRaw16) {
      if (live) CopyRaw(row, codes);
      return;
    }
    const float norm = Load(row, live);
    if (block_.row.rope_mean) {
      const RotationRow angles = AnglesAt(params_, block_.row, slot);
      for (int32_t d = lane_; d < head_dim_; d += kLanes) {
        x_[d] -= TurnedMean(shared_.mean, angles, d);
      }
    }
    const float squared_length = GroupTreeSum(SquaredLane(x_));
    if (block_.row.hadamard) {
      for (int32_t d = lane_; d < head_dim_; d += kLanes) x_[d] *= params_.hadamard.signs[d];
      __syncwarp();
      GroupHadamard(params_.hadamard, lane_, x_, y_);
      __syncwarp();
    } else {
      for (int32_t d = lane_; d < head_dim_; d += kLanes) y_[d] = x_[d];
    }
    const GroupCode code = {block_, {lane_, x_, y_}, head_dim_, token, live};
    Code(code, squared_length);
    const float error = GroupTreeSum(SquaredLane(y_));
    if (lane_ != 0 || !live) return;
    shared_.norms[token] = norm;
    shared_.errors[token] = error;
  }

 private:
  __device__ void CopyRaw(const std::byte* row, std::byte* codes) const {
    constexpr int kSize = static_cast<int>(sizeof(T));
    for (int32_t d = lane_; d < head_dim_; d += kLanes) {
      const std::byte* from = row + d * block_.layer.dim_stride;
      KVERN_UNROLL
      for (int i = 0; i < kSize; ++i) codes[d * kSize + i] = from[i];
    }
  }

  // x = the row, sanitised; |row|^2.
  __device__ float Load(const std::byte* row, bool live) {
    unsigned count = 0;
    for (int32_t d = lane_; d < head_dim_; d += kLanes) {
      float value = ToFloat(*reinterpret_cast<const T*>(row + d * block_.layer.dim_stride));
      if (!(fabsf(value) <= kLargestCoded)) {
        ++count;
        value = Sanitised(value);
      }
      x_[d] = value;
    }
    if (count > 0 && live) atomicAdd(shared_.nonfinite, count);
    return GroupTreeSum(SquaredLane(x_));
  }

  // y becomes what the codes leave over.
  __device__ void Code(const GroupCode& code, float squared_length) {
    std::byte* const codes = code.live ? code.Codes() : nullptr;
    CodeScale scale;
    switch (block_.row.codec) {
      case CodecId::kSfv2:
      case CodecId::kSfv3:
        SfvEncoder(block_.row.codec, shared_.sfv, code).Encode(squared_length);
        return;
      case CodecId::kI4t:
        CodeI4t(code);
        return;
      case CodecId::kKch4:
        CodeKch4(code);
        return;
      case CodecId::kI8t:
        scale = CodeI8(codes);
        break;
      case CodecId::kFp8t:
        scale = CodeFp8(codes);
        break;
      default:
        scale = CodeLm4(squared_length, codes);
    }
    if (code.row.lane == 0 && code.live) PutHalf(code.Scales(), code.token, scale);
  }

  __device__ float SquaredLane(const float* x) const {
    float sum = 0;
    for (int32_t d = lane_; d < head_dim_; d += kLanes) sum = fmaf(x[d], x[d], sum);
    return sum;
  }

  __device__ float LargestMagnitude() const {
    float largest = 0.0f;
    for (int32_t d = lane_; d < head_dim_; d += kLanes) largest = fmaxf(largest, fabsf(y_[d]));
    KVERN_UNROLL
    for (int apart = kLanes / 2; apart > 0; apart /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, apart));
    }
    return largest;
  }

  // Null codes: nothing is stored.
  __device__ CodeScale CodeFp8(std::byte* codes) {
    const CodeScale scale = Fp8Scale(LargestMagnitude());
    const float inverse = InverseScale(scale.value);
    for (int32_t d = lane_; d < head_dim_; d += kLanes) {
      const uint8_t code = E4m3FromFloat(y_[d] * inverse);
      if (codes != nullptr) codes[d] = static_cast<std::byte>(code);
      y_[d] = fmaf(-scale.value, FloatFromE4m3(code), y_[d]);
    }
    return scale;
  }

  // As CodeFp8.
  __device__ CodeScale CodeI8(std::byte* codes) {
    const CodeScale scale = I8Scale(LargestMagnitude());
    const float inverse = InverseScale(scale.value);
    for (int32_t d = lane_; d < head_dim_; d += kLanes) {
      const I8Code code = I8CodeOf(y_[d] * inverse);
      if (codes != nullptr)
        codes[d] = static_cast<std::byte>(internal::BitsFromFloat(code.shifted));
      y_[d] = fmaf(-scale.value, code.code, y_[d]);
    }
    return scale;
  }

  // As CodeI8; `squared_length` is that of the row before its rotation. x becomes the levels.
  __device__ CodeScale CodeLm4(float squared_length, std::byte* codes) {
    const float normalizer = Lm4Normalizer(squared_length, head_dim_);
    for (int32_t first = 0; first < head_dim_; first += kLanes) {
      const int32_t d = first + lane_;
      uint32_t word = 0;
      if (d < head_dim_) {
        const uint32_t offset = Lm4OffsetOf(WithinLm4Reach(y_[d] * normalizer), shared_.cells);
        x_[d] = AtOffset(shared_.levels, offset);
        word = offset / 4 << Lm4Shift(d % kOctet);
      }
      KVERN_UNROLL
      for (int apart = kOctet / 2; apart > 0; apart /= 2) {
        word |= __shfl_xor_sync(kAllLanes, word, apart);
      }
      const bool stores = codes != nullptr && normalizer != 0.0f && d < head_dim_;
      if (stores && d % kOctet == 0) StoreBytes(codes + d / 2, word, 4);
    }
    const CodeScale scale = Lm4Scale(squared_length, GroupTreeSum(SquaredLane(x_)));
    for (int32_t d = lane_; d < head_dim_; d += kLanes) y_[d] = fmaf(-scale.value, x_[d], y_[d]);
    return scale;
  }

  const CodingParams& params_;
  const Block& block_;
  const EncodeShared& shared_;
  const int32_t head_dim_;
  const int lane_;
  float* const x_;
  float* const y_;
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ENCODE_GROUP_CUH_
