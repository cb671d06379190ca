// Decoding to any head_dim, dtype, stride and alignment: 16 threads share a row in shared memory.
// Codes are read byte by byte.
#ifndef KVERN_KERNELS_CUDA_DECODE_GROUP_CUH_
#define KVERN_KERNELS_CUDA_DECODE_GROUP_CUH_

#include <cstdint>

#include "kernels/base/fp8.h"
#include "kernels/cuda/affine.cuh"
#include "kernels/cuda/coding_group.cuh"
#include "kernels/cuda/decode_shared.cuh"
#include "kernels/cuda/sfv.cuh"

namespace kvern::cuda {

template <class T>
class GroupDecoder {
 public:
  __device__ GroupDecoder(const CodingParams& params, const Block& block,
                          const DecodeShared& shared, const GroupRow& row)
      : params_(params),
        block_(block),
        shared_(shared),
        head_dim_(params.shape.head_dim),
        lane_(row.lane),
        x_(row.x),
        y_(row.y) {}

  // All threads of the warp take part; where not `live` they change nothing outside.
  __device__ void Decode(int32_t token, bool live) {
    const int32_t slot = block_.row.first_slot + token;
    std::byte* row = block_.layer.Address(block_.row.head, slot);
    const std::byte* const codes = block_.codes + token * block_.row.code_row_bytes;
    if (block_.row.codec == CodecId::kRaw16) {
      if (live) CopyRaw(codes, row);
      return;
    }
    Restore({block_, {lane_, x_, y_}, head_dim_, token, live});
    float* out = x_;
    if (block_.row.hadamard) {
      __syncwarp();
      GroupHadamard(params_.hadamard, lane_, x_, y_);
      __syncwarp();
      for (int32_t d = lane_; d < head_dim_; d += kLanes) y_[d] *= params_.hadamard.signs[d];
      out = y_;
    }
    if (block_.row.rope_mean) {
      const RotationRow angles = AnglesAt(params_, block_.row, slot);
      for (int32_t d = lane_; d < head_dim_; d += kLanes) {
        out[d] += TurnedMean(shared_.mean, angles, d);
      }
    }
    if (!live) return;
    for (int32_t d = lane_; d < head_dim_; d += kLanes) {
      *reinterpret_cast<T*>(row + d * block_.layer.dim_stride) = Rounded<T>(out[d]);
    }
  }

 private:
  __device__ void CopyRaw(const std::byte* codes, std::byte* row) const {
    constexpr int kSize = static_cast<int>(sizeof(T));
    for (int32_t d = lane_; d < head_dim_; d += kLanes) {
      std::byte* to = row + d * block_.layer.dim_stride;
      KVERN_UNROLL
      for (int i = 0; i < kSize; ++i) to[i] = codes[d * kSize + i];
    }
  }

  // x = codes * scale (+ zero), in the space that was coded.
  __device__ void Restore(const GroupCode& code) {
    const CodecId codec = block_.row.codec;
    if (IsAffine(codec)) {
      for (int32_t d = lane_; d < head_dim_; d += kLanes) {
        x_[d] = RestoredAffine(code, codec == CodecId::kKch4, d);
      }
      return;
    }
    if (IsSfv(codec)) {
      for (int32_t d = lane_; d < head_dim_; d += kLanes) {
        x_[d] = RestoredSfv(code, codec, shared_.sfv_words, d);
      }
      return;
    }
    const float scale = HalfAt(code.Scales(), code.token);
    for (int32_t d = lane_; d < head_dim_; d += kLanes) x_[d] = scale * LevelAt(code.Codes(), d);
  }

  // Of the codes with one scale per token.
  __device__ float LevelAt(const std::byte* codes, int32_t d) const {
    if (block_.row.codec == CodecId::kLm4) return shared_.levels[NibbleAt(codes, d)];
    const uint32_t byte = LoadByte(codes + d);
    return block_.row.codec == CodecId::kFp8t ? FloatFromE4m3(byte)
                                              : static_cast<float>(static_cast<int8_t>(byte));
  }

  const CodingParams& params_;
  const Block& block_;
  const DecodeShared& shared_;
  const int32_t head_dim_;
  const int lane_;
  float* const x_;
  float* const y_;
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_DECODE_GROUP_CUH_
