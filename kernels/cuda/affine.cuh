// Affine int4 by 16 threads a row: i4t finds its scales in the row, kch4 in the block.
#ifndef KVERN_KERNELS_CUDA_AFFINE_CUH_
#define KVERN_KERNELS_CUDA_AFFINE_CUH_

#include <cstdint>
#include <limits>

#include "kernels/base/affine_rules.h"
#include "kernels/cuda/encode_shared.cuh"
#include "kernels/cuda/planes.cuh"

namespace kvern::cuda {

// Scale and zero of every channel of a block of kch4, a thread per channel. All threads of the
// block take part; a barrier has to follow.
template <class T>
__device__ void ScaleChannels(const CodingParams& params, const Block& block) {
  if (block.row.codec != CodecId::kKch4) return;
  std::byte* const scales = block.codes + block.row.scales;
  std::byte* const zeros = block.codes + block.row.zeros;
  for (int32_t d = threadIdx.x; d < params.shape.head_dim; d += kCodingThreads) {
    float lowest = kLargestCoded;
    float highest = -kLargestCoded;
    for (int32_t token = 0; token < kPackedBlockTokens; ++token) {
      const std::byte* row = block.layer.Address(block.row.head, block.Source(token));
      float value = ToFloat(*reinterpret_cast<const T*>(row + d * block.layer.dim_stride));
      if (!(fabsf(value) <= kLargestCoded)) value = Sanitised(value);
      lowest = fminf(lowest, value);
      highest = fmaxf(highest, value);
    }
    const AffineScale affine = AffineScaleOf(lowest, highest);
    PutHalf(scales, d, affine.scale);
    PutHalf(zeros, d, affine.zero);
  }
}

// Codes the elements of y that begin at `first`, one per thread; y becomes what they leave over.
__device__ inline void CodeAffine(const GroupCode& code, int32_t first, float scale, float zero) {
  const int32_t d = first + code.row.lane;
  float nibble = 0.0f;
  if (d < code.head_dim) {
    float& y = code.row.y[d];
    nibble = AffineCode(y, zero, InverseScale(scale));
    y -= AffineValue(nibble, scale, zero);
  }
  StoreNibble(code, d, static_cast<uint32_t>(nibble));
}

// y becomes what the codes leave over. All threads of the warp take part.
__device__ inline void CodeKch4(const GroupCode& code) {
  for (int32_t first = 0; first < code.head_dim; first += kLanes) {
    const int32_t d = min(first + code.row.lane, code.head_dim - 1);
    CodeAffine(code, first, HalfAt(code.Scales(), d), HalfAt(code.Zeros(), d));
  }
}

// In SCALE and ZERO.
__device__ inline int32_t I4tScaleIndex(const GroupCode& code, int32_t group) {
  const int32_t groups = code.head_dim % 64 == 0 ? code.head_dim / 64 : 1;
  return code.token * groups + group;
}

__device__ inline void CodeI4t(const GroupCode& code) {
  const int32_t size = static_cast<int32_t>(I4tGroup(code.head_dim));
  const float* const y = code.row.y;
  for (int32_t group = 0; group * size < code.head_dim; ++group) {
    const int32_t begin = group * size;
    float lowest = std::numeric_limits<float>::infinity();
    float highest = -lowest;
    for (int32_t d = begin + code.row.lane; d < begin + size; d += kLanes) {
      lowest = fminf(lowest, y[d]);
      highest = fmaxf(highest, y[d]);
    }
    KVERN_UNROLL
    for (int apart = kLanes / 2; apart > 0; apart /= 2) {
      lowest = fminf(lowest, __shfl_xor_sync(kAllLanes, lowest, apart));
      highest = fmaxf(highest, __shfl_xor_sync(kAllLanes, highest, apart));
    }
    const AffineScale affine = AffineScaleOf(lowest, highest);
    if (code.row.lane == 0 && code.live) {
      const int32_t index = I4tScaleIndex(code, group);
      PutHalf(code.Scales(), index, affine.scale);
      PutHalf(code.Zeros(), index, affine.zero);
    }
    for (int32_t first = begin; first < begin + size; first += kLanes) {
      CodeAffine(code, first, affine.scale.value, affine.zero.value);
    }
  }
}

// Element d of a row of codes.
__device__ inline float RestoredAffine(const GroupCode& code, bool channels, int32_t d) {
  const int32_t index = channels ? d : I4tScaleIndex(code, code.head_dim % 64 == 0 ? d / 64 : 0);
  return AffineValue(static_cast<float>(NibbleAt(code.Codes(), d)), HalfAt(code.Scales(), index),
                     HalfAt(code.Zeros(), index));
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_AFFINE_CUH_
