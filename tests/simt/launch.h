// Starting kernels: through a stream of the emulated runtime, or at once.
#ifndef KVERN_TESTS_SIMT_LAUNCH_H_
#define KVERN_TESTS_SIMT_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "simt/grid.h"

namespace simt {

struct KernelCall {
  GridShape shape;                // with the kernel's address, for names and attributes
  void (*body)(void*) = nullptr;  // takes a copy of the context's bytes
  const void* context = nullptr;  // context_bytes of it, to be copied before Enqueue returns
};

// Of the emulated runtime: checks the call, queues it on `stream`.
cudaError_t Enqueue(const KernelCall& call, cudaStream_t stream);
cudaError_t AllowSharedBytes(const void* kernel, int shared_bytes);

template <class Params>
struct Bound {
  void (*kernel)(Params);
  Params params;

  static void Run(void* self) {
    const Bound* bound = static_cast<const Bound*>(self);
    bound->kernel(bound->params);
  }
};

template <class Params>
cudaError_t Launch(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes,
                   const Params& params, cudaStream_t stream) {
  static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096);
  using Call = Bound<Params>;
  const Call call{kernel, params};
  const GridShape shape = {blocks, threads, shared_bytes, sizeof(Call),
                           reinterpret_cast<const void*>(kernel)};
  return Enqueue({shape, &Call::Run, &call}, stream);
}

template <class Params>
cudaError_t AllowShared(void (*kernel)(Params), int shared_bytes) {
  return AllowSharedBytes(reinterpret_cast<const void*>(kernel), shared_bytes);
}

// Without a runtime or a stream: returns when the grid has ended, throws Error.
template <class Params>
void RunKernel(void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes,
               const Params& params) {
  using Call = Bound<Params>;
  Call call{kernel, params};
  RunGrid({blocks, threads, shared_bytes, sizeof(Call), reinterpret_cast<const void*>(kernel)},
          &Call::Run, &call);
}

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_LAUNCH_H_
