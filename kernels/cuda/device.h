// What kernels may use, and their only include beside kernels/base and this folder.
//
// The same .cu files are compiled twice: by nvcc for GPUs, and by a plain C++ compiler against the
// emulator of tests/simt, where <simt/simt.h> supplies threadIdx, barriers, shuffles and atomics.
// Whatever has two spellings has one here:
//   * shared memory by KVERN_SHARED at the top of a kernel, or KVERN_DYNAMIC_SHARED once;
//   * global memory by Load / Store of explicit 16-byte vectors (plain scalar accesses are fine);
//   * launches by Launch, with one trivially copyable parameter struct per kernel.
// House rules (they keep kernels deterministic and checkable): no return before a block barrier;
// full-mask collectives by whole warps; no spin locks, no last-block tickets, no float atomics; one
// writer per location; explicit fmaf / fma where fused (the build has -fmad=false).
#ifndef KVERN_KERNELS_CUDA_DEVICE_H_
#define KVERN_KERNELS_CUDA_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define KVERN_SHARED(type, name, count) __shared__ type name[count]
// One per kernel; `name` points to the dynamic shared memory of the launch, 16-byte aligned.
#define KVERN_DYNAMIC_SHARED(type, name)                         \
  extern __shared__ __align__(16) unsigned char kvern_dynamic[]; \
  type* const name = reinterpret_cast<type*>(kvern_dynamic)
#define KVERN_UNROLL _Pragma("unroll")
#else
#include <simt/simt.h>  // defines the same macros
#endif

namespace kvern::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// 16 bytes that move in one instruction.
struct alignas(16) Vector16 {
  uint32_t words[4];
};

struct LaunchShape {
  int64_t blocks = 0;
  int threads = 0;
  int shared_bytes = 0;  // dynamic
};

#if defined(__CUDACC__)

// Read-only for the whole launch.
__device__ inline Vector16 LoadReadOnly(const void* address) {
  const uint4 bits = __ldg(static_cast<const uint4*>(address));
  return {{bits.x, bits.y, bits.z, bits.w}};
}
__device__ inline Vector16 Load(const void* address) {
  const uint4 bits = *static_cast<const uint4*>(address);
  return {{bits.x, bits.y, bits.z, bits.w}};
}
__device__ inline void Store(void* address, Vector16 value) {
  *static_cast<uint4*>(address) =
      make_uint4(value.words[0], value.words[1], value.words[2], value.words[3]);
}

// Asynchronous on `stream`; errors of the launch itself. A launch of no blocks is none.
template <class Params>
cudaError_t Launch(void (*kernel)(Params), const LaunchShape& shape, const Params& params,
                   cudaStream_t stream) {
  static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096);
  if (shape.blocks == 0) return cudaSuccess;
  kernel<<<dim3(static_cast<unsigned>(shape.blocks)), dim3(static_cast<unsigned>(shape.threads)),
           static_cast<size_t>(shape.shared_bytes), stream>>>(params);
  return cudaGetLastError();
}
// More than 48 KiB of dynamic shared memory has to be asked for once per kernel.
template <class Params>
cudaError_t AllowShared(void (*kernel)(Params), int shared_bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
}

#else

using simt::AllowShared;
// simt::Launch(kernel, shape, params, stream) has the same form.
__device__ inline Vector16 LoadReadOnly(const void* address) {
  return simt::Load<Vector16>(address);
}
__device__ inline Vector16 Load(const void* address) { return simt::Load<Vector16>(address); }
__device__ inline void Store(void* address, Vector16 value) { simt::Store(address, value); }
template <class Params>
cudaError_t Launch(void (*kernel)(Params), const LaunchShape& shape, const Params& params,
                   cudaStream_t stream) {
  static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096);
  if (shape.blocks == 0) return cudaSuccess;
  return simt::Launch(kernel, shape.blocks, shape.threads, shape.shared_bytes, params, stream);
}

#endif

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_DEVICE_H_
