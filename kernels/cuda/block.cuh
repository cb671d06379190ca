// What a block of whole warps agrees on: prefix sums and the largest key, on shuffles. Blocks are
// one-dimensional with `warps` full warps, and all their threads take part in every call.
#ifndef KVERN_KERNELS_CUDA_BLOCK_CUH_
#define KVERN_KERNELS_CUDA_BLOCK_CUH_

#include <cstdint>

#include "kernels/cuda/device.h"

namespace kvern::cuda {

__device__ inline int LaneId() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int WarpId() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ inline uint32_t LanesBelow() { return (1u << LaneId()) - 1; }

template <class T>
__device__ inline T WarpInclusiveSum(T value) {
  KVERN_UNROLL
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T below = __shfl_up_sync(kAllLanes, value, distance);
    if (LaneId() >= distance) value += below;
  }
  return value;
}

// Of 64 bits by two 32-bit reductions: the high words, then the low words that go with their
// maximum.
__device__ inline uint64_t WarpMax(uint64_t value) {
  const uint32_t high = static_cast<uint32_t>(value >> 32);
  const uint32_t low = static_cast<uint32_t>(value);
  const uint32_t top = __reduce_max_sync(kAllLanes, high);
  const uint32_t below = __reduce_max_sync(kAllLanes, high == top ? low : 0u);
  return uint64_t{top} << 32 | below;
}

// The functions below hold one barrier. `of_warps` [warps] is shared memory; a barrier has to lie
// between a call and the next one that gets the same.

template <class T>
struct Prefix {
  T before;  // sum over the threads (or warps) before this one
  T total;
};

// `value` is one per warp.
template <int warps, class T>
__device__ inline Prefix<T> WarpsExclusiveSum(T value, T* of_warps) {
  static_assert(warps <= kWarp);
  if (LaneId() == 0) of_warps[WarpId()] = value;
  __syncthreads();
  const T inclusive = WarpInclusiveSum(LaneId() < warps ? of_warps[LaneId()] : T{});
  return {static_cast<T>(__shfl_sync(kAllLanes, inclusive, WarpId()) - value),
          __shfl_sync(kAllLanes, inclusive, warps - 1)};
}

template <int warps, class T>
__device__ inline Prefix<T> BlockExclusiveSum(T value, T* of_warps) {
  const T inclusive = WarpInclusiveSum(value);
  const T of_warp = __shfl_sync(kAllLanes, inclusive, kWarp - 1);
  const Prefix<T> prefix = WarpsExclusiveSum<warps>(of_warp, of_warps);
  return {static_cast<T>(prefix.before + inclusive - value), prefix.total};
}

// Rank keys are unique, so that the largest names one token: this is the argmax.
template <int warps>
__device__ inline uint64_t BlockMax(uint64_t value, uint64_t* of_warps) {
  static_assert(warps <= kWarp);
  const uint64_t of_warp = WarpMax(value);
  if (LaneId() == 0) of_warps[WarpId()] = of_warp;
  __syncthreads();
  return WarpMax(LaneId() < warps ? of_warps[LaneId()] : 0);
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_BLOCK_CUH_
