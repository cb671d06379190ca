// CUDA's words for kernels that a C++ compiler translates: the only header that device code needs
// beside kernels/base. What a kernel may not do on a GPU it may not do here; much of it is
// reported.
#ifndef KVERN_TESTS_SIMT_SIMT_H_
#define KVERN_TESTS_SIMT_SIMT_H_

#include <cstddef>
#include <cstdint>

#include "simt/atomics.h"
#include "simt/collectives.h"
#include "simt/hooks.h"
#include "simt/intrinsics.h"
#include "simt/launch.h"

// __noinline__ stays undefined: the standard library spells attributes with it. The check build
// inlines whole kernels, as nvcc does, so that an access is known by the kernel's own line.
#if defined(KVERN_SIMT_CHECK)
#define __global__ inline __attribute__((flatten))
#else
#define __global__ inline
#endif
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define KVERN_UNROLL

// `name` is an array of `count` elements that the block shares; its bytes are 0xFF at first.
#define KVERN_SHARED(type, name, count)                                \
  type(&name)[count] = *static_cast<type(*)[count]>(                   \
      simt::DeclareShared({[]() -> const void* {                       \
                             static const char tag = 0;                \
                             return &tag;                              \
                           }(),                                        \
                           #name, sizeof(type[count]), alignof(type)}, \
                          simt::Site::Here(__FILE__, __LINE__)))
// `name` points to the dynamic shared memory of the launch.
#define KVERN_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(simt::DynamicShared())

namespace simt {

struct Index3 {
  unsigned x = 0;
  unsigned y = 0;
  unsigned z = 0;
};

}  // namespace simt

// Real variables, set whenever another thread goes on: a debugger can print them. Grids have one
// axis.
extern simt::Index3 threadIdx;
extern simt::Index3 blockIdx;
extern simt::Index3 blockDim;
extern simt::Index3 gridDim;
inline constexpr int warpSize = simt::kWarpLanes;

namespace simt {

#if defined(KVERN_SIMT_CHECK)
#define SIMT_ACCESS SIMT_SHIM __attribute__((noinline))
#else
#define SIMT_ACCESS SIMT_SHIM
#endif

// One access of sizeof(T) bytes (4, 8, 16), as one instruction of a GPU.
template <class T>
SIMT_ACCESS T Load(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T)) {
    FailMisaligned(address, sizeof(T), SIMT_CALLER);
  }
#if defined(KVERN_SIMT_CHECK)
  NoteAccess({address, sizeof(T), false, false}, SIMT_CALLER);
#endif
  T value;
  __builtin_memcpy(&value, address, sizeof(T));
  return value;
}
template <class T>
SIMT_ACCESS void Store(void* address, const T& value) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(T)) {
    FailMisaligned(address, sizeof(T), SIMT_CALLER);
  }
#if defined(KVERN_SIMT_CHECK)
  NoteAccess({address, sizeof(T), true, false}, SIMT_CALLER);
#endif
  __builtin_memcpy(address, &value, sizeof(T));
}

}  // namespace simt

template <class T>
SIMT_ACCESS T __ldg(const T* address) {
#if defined(KVERN_SIMT_CHECK)
  simt::NoteAccess({address, sizeof(T), false, false}, SIMT_CALLER);
#endif
  return *address;
}
// Memory is sequentially consistent here: only races, not missing fences, can be found.
SIMT_SHIM void __threadfence() {}
SIMT_SHIM void __threadfence_block() {}

#endif  // KVERN_TESTS_SIMT_SIMT_H_
