// A row in shared memory between 16 threads, for the paths of encode and decode that take anything.
#ifndef KVERN_KERNELS_CUDA_CODING_GROUP_CUH_
#define KVERN_KERNELS_CUDA_CODING_GROUP_CUH_

#include <cstdint>

#include "kernels/base/lanes.h"
#include "kernels/cuda/coding.cuh"

namespace kvern::cuda {

inline constexpr int kGroups = kCodingThreads / kLanes;  // rows that a block codes at once

// Two buffers of head_dim floats. Thread `lane` owns elements lane, lane + 16, ...; only the
// rotation reads others.
struct GroupRow {
  int lane;
  float* x;
  float* y;
};

// Floats of a buffer: the two rows of a warp lie in different banks.
KVERN_HD constexpr int32_t GroupStride(int32_t head_dim) {
  return (head_dim + 31) / 32 * 32 + kLanes;
}
// Of a block: the mean, then x and y of every group.
constexpr int GroupSharedBytes(int32_t head_dim) {
  return (head_dim + 2 * kGroups * GroupStride(head_dim)) * static_cast<int>(sizeof(float));
}
__device__ inline GroupRow GroupRowOf(float* shared, int32_t head_dim) {
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const int32_t stride = GroupStride(head_dim);
  float* const x = shared + head_dim + 2 * group * stride;
  return {static_cast<int>(threadIdx.x) % kLanes, x, x + stride};
}

// The tree 8, 4, 2, 1; every thread of the group gets the sum.
template <class S>
__device__ inline S GroupTreeSum(S sum) {
  KVERN_UNROLL
  for (int apart = kLanes / 2; apart > 0; apart /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, apart);
  }
  return sum;
}

__device__ inline uint32_t LoadByte(const std::byte* from) { return static_cast<uint32_t>(*from); }
// Little-endian, at any alignment.
__device__ inline void StoreBytes(std::byte* to, uint32_t value, int count) {
  for (int i = 0; i < count; ++i) to[i] = static_cast<std::byte>(value >> (8 * i));
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_CODING_GROUP_CUH_
