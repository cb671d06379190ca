// The planes of a block beside CODES, for the paths of encode and decode that take any codec.
#ifndef KVERN_KERNELS_CUDA_PLANES_CUH_
#define KVERN_KERNELS_CUDA_PLANES_CUH_

#include <cstdint>

#include "kernels/cuda/coding_group.cuh"

namespace kvern::cuda {

struct BlockPlanes {
  std::byte* signs;
  std::byte* scales;
  std::byte* zeros;
  int32_t sign_row_bytes;
  int32_t token_scales;  // 0 for kch4, whose scales are those of the block
};
__device__ inline BlockPlanes PlanesAt(const CodingParams& params, const Block& block) {
  const CodecId codec = block.row.codec;
  const RowShape& shape = params.shape;
  const int64_t tokens = block.row.tokens;
  return {block.codes + SignOffset(codec, shape.dtype, tokens, shape.head_dim),
          block.codes + ScaleOffset(codec, shape.dtype, tokens, shape.head_dim),
          block.codes + ZeroOffset(codec, shape.dtype, tokens, shape.head_dim),
          static_cast<int32_t>(SignRowBytes(codec, shape.head_dim)),
          static_cast<int32_t>(TokenScales(codec, shape.head_dim))};
}

__device__ inline float HalfAt(const std::byte* plane, int32_t index) {
  const std::byte* const at = plane + index * 2;
  return ToFloat(Float16{static_cast<uint16_t>(LoadByte(at) | LoadByte(at + 1) << 8)});
}
__device__ inline void PutHalf(std::byte* plane, int32_t index, const CodeScale& scale) {
  StoreBytes(plane + index * 2, scale.stored.bits, 2);
}

// What 16 threads need to code or restore a row (GroupRow): x and y of head_dim floats in shared
// memory, of which thread `lane` owns elements lane, lane + 16, ...
struct GroupCode {
  GroupRow row;
  int32_t head_dim;
  std::byte* codes;  // of the token
  BlockPlanes planes;
  int32_t token;
  bool live;  // else nothing is stored
};

// Stores the nibble of element d, which the eight threads of an octet have at the same time.
// d >= head_dim: takes part, stores nothing. All threads of the warp take part.
__device__ inline void StoreNibble(const GroupCode& code, int32_t d, uint32_t nibble) {
  uint32_t word = nibble << Lm4Shift(d % kOctet);
  KVERN_UNROLL
  for (int apart = kOctet / 2; apart > 0; apart /= 2) {
    word |= __shfl_xor_sync(kAllLanes, word, apart);
  }
  if (code.live && d < code.head_dim && d % kOctet == 0) StoreBytes(code.codes + d / 2, word, 4);
}
__device__ inline uint32_t NibbleAt(const std::byte* codes, int32_t d) {
  const uint32_t bit = d / kOctet * 32 + Lm4Shift(d % kOctet);
  return LoadByte(codes + bit / 8) >> bit % 8 & 15;
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_PLANES_CUH_
