// The planes of a block and of its tokens, for the paths of encode and decode that take any codec.
#ifndef KVERN_KERNELS_CUDA_PLANES_CUH_
#define KVERN_KERNELS_CUDA_PLANES_CUH_

#include <cstdint>

#include "kernels/cuda/coding_group.cuh"

namespace kvern::cuda {

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
  const Block& block;
  GroupRow row;
  int32_t head_dim;
  int32_t token;
  bool live;  // else nothing is stored

  __device__ std::byte* Codes() const { return block.codes + token * block.row.code_row_bytes; }
  __device__ std::byte* Signs() const {  // of sfv3
    return block.codes + block.row.signs + token * (head_dim / 8);
  }
  __device__ std::byte* Scales() const { return block.codes + block.row.scales; }
  __device__ std::byte* Zeros() const { return block.codes + block.row.zeros; }
};

// Stores the nibble of element d, which the eight threads of an octet have at the same time.
// d >= head_dim: takes part, stores nothing. All threads of the warp take part.
__device__ inline void StoreNibble(const GroupCode& code, int32_t d, uint32_t nibble) {
  uint32_t word = nibble << Lm4Shift(d % kOctet);
  KVERN_UNROLL
  for (int apart = kOctet / 2; apart > 0; apart /= 2) {
    word |= __shfl_xor_sync(kAllLanes, word, apart);
  }
  if (code.live && d < code.head_dim && d % kOctet == 0) StoreBytes(code.Codes() + d / 2, word, 4);
}
__device__ inline uint32_t NibbleAt(const std::byte* codes, int32_t d) {
  const uint32_t bit = d / kOctet * 32 + Lm4Shift(d % kOctet);
  return LoadByte(codes + bit / 8) >> bit % 8 & 15;
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_PLANES_CUH_
