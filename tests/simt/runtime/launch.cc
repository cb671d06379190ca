// Puts kernels into streams, with the checks that the real launch makes.
#include "simt/launch.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "simt/grid.h"
#include "simt/runtime/runtime.h"

namespace simt {
namespace {

using runtime::Runtime;

constexpr int64_t kMaxBlocks = (int64_t{1} << 31) - 1;
constexpr int kSharedBytesByDefault = 48 << 10;
constexpr size_t kMaxContextBytes = (4 << 10) + 16;  // 4 KiB of parameters, and Bound's pointer

cudaError_t CheckShape(const KernelCall& call, int shared_limit) {
  const GridShape& shape = call.shape;
  if (shape.blocks < 1 || shape.blocks > kMaxBlocks) return cudaErrorInvalidConfiguration;
  if (shape.threads < 1 || shape.threads > kMaxThreads) return cudaErrorInvalidConfiguration;
  if (shape.shared_bytes < 0 || shape.shared_bytes > shared_limit) return cudaErrorInvalidValue;
  return shape.context_bytes > kMaxContextBytes ? cudaErrorInvalidValue : cudaSuccess;
}

cudaError_t Meaning(Fault fault) {
  switch (fault) {
    case Fault::kMisaligned:
      return cudaErrorMisalignedAddress;
    case Fault::kDeadlock:
      return cudaErrorLaunchTimeout;
    case Fault::kBarrier:
    case Fault::kCollective:
    case Fault::kResources:
      return cudaErrorLaunchFailure;
    default:
      return cudaErrorIllegalAddress;
  }
}

struct alignas(16) Chunk {
  unsigned char bytes[16];
};

}  // namespace

cudaError_t Enqueue(const KernelCall& call, cudaStream_t stream) {
  Runtime& runtime = Runtime::Get();
  runtime.Call("cudaLaunchKernel", [&]() -> cudaError_t {
    const auto limit = runtime.shared_limits().find(call.shape.kernel);
    const cudaError_t error = CheckShape(
        call, limit == runtime.shared_limits().end() ? kSharedBytesByDefault : limit->second);
    if (error != cudaSuccess) return error;
    const runtime::StreamRef queue = runtime.streams().Find(stream);
    if (queue == nullptr) return cudaErrorInvalidResourceHandle;
    runtime.NoteLaunch(call.shape.kernel, call.shape.blocks, call.shape.threads);
    const std::shared_ptr<Chunk[]> context(
        new Chunk[(call.shape.context_bytes + sizeof(Chunk) - 1) / sizeof(Chunk)]);
    std::memcpy(context.get(), call.context, call.shape.context_bytes);
    const bool abort = runtime.abort_on_kernel_error();
    runtime.streams().Push(queue, [shape = call.shape, body = call.body, context, abort] {
      try {
        RunGrid(shape, body, context.get());
      } catch (const Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        if (abort) std::abort();
        return Meaning(error.fault);
      }
      return cudaSuccess;
    });
    return cudaSuccess;
  });
  return runtime.Take();  // as after <<<>>>: also what an earlier call left behind
}

cudaError_t AllowSharedBytes(const void* kernel, int shared_bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
}

}  // namespace simt

extern "C" cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute,
                                            int value) {
  simt::runtime::Runtime& runtime = simt::runtime::Runtime::Get();
  return runtime.Call("cudaFuncSetAttribute", [&]() -> cudaError_t {
    if (function == nullptr) return cudaErrorInvalidDeviceFunction;
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<size_t>(value) > simt::kMaxSharedBytes) {
      return cudaErrorInvalidValue;
    }
    runtime.shared_limits()[function] = std::max(value, simt::kSharedBytesByDefault);
    return cudaSuccess;
  });
}
