// Memory of device and host: who gets it, and what a pointer is.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>

#include "simt/config.h"
#include "simt/memory.h"
#include "simt/runtime/host_memory.h"
#include "simt/runtime/runtime.h"
#include "simt/runtime/vmm.h"

namespace simt::runtime {
namespace {

struct Pinned {
  size_t bytes = 0;
  bool owned = false;   // else registered by the caller
  bool mapped = false;  // kernels may read and write it
};
using PinnedMap = std::map<uintptr_t, Pinned>;  // by first byte

PinnedMap& AllPinned() {
  static PinnedMap* const map = new PinnedMap;
  return *map;
}

uintptr_t Key(const void* address) { return reinterpret_cast<uintptr_t>(address); }

// Null if no byte range of the map holds `address`.
const PinnedMap::value_type* FindPinned(const void* address) {
  const PinnedMap& map = AllPinned();
  auto next = map.upper_bound(Key(address));
  if (next == map.begin()) return nullptr;
  --next;
  return Key(address) - next->first < next->second.bytes ? &*next : nullptr;
}

constexpr size_t kPage = 4096;

}  // namespace

bool IsPinned(const void* begin, size_t bytes) {
  const auto* const found = FindPinned(begin);
  return found != nullptr && bytes <= found->second.bytes - (Key(begin) - found->first);
}

}  // namespace simt::runtime

using simt::runtime::AllPinned;
using simt::runtime::Runtime;

cudaError_t cudaMalloc(void** device, size_t bytes) {
  return Runtime::Get().Call("cudaMalloc", [&]() -> cudaError_t {
    if (device == nullptr) return cudaErrorInvalidValue;
    *device = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (bytes > simt::Current().device_bytes - simt::runtime::MappableBytesUsed()) {
      return cudaErrorMemoryAllocation;
    }
    *device = simt::DeviceAlloc(bytes);
    return *device == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
  });
}

// Waits for the device, as the real call does: what still runs may use the memory.
cudaError_t cudaFree(void* device) {
  Runtime& runtime = Runtime::Get();
  return runtime.Call("cudaFree", [&]() -> cudaError_t {
    if (device == nullptr) return cudaSuccess;
    runtime.WaitForAll();
    return simt::DeviceFree(device) ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  return Runtime::Get().Call("cudaMemGetInfo", [&]() -> cudaError_t {
    if (free_bytes == nullptr || total_bytes == nullptr) return cudaErrorInvalidValue;
    *total_bytes = simt::Current().device_bytes;
    *free_bytes = *total_bytes - simt::DeviceBytesUsed() - simt::runtime::MappableBytesUsed();
    return cudaSuccess;
  });
}

// Filled with 0xFF: the real memory is what it was before.
cudaError_t cudaHostAlloc(void** host, size_t bytes, unsigned int flags) {
  return Runtime::Get().Call("cudaHostAlloc", [&]() -> cudaError_t {
    constexpr unsigned int kKnown =
        cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
    if (host == nullptr || (flags & ~kKnown) != 0) return cudaErrorInvalidValue;
    *host = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (posix_memalign(host, simt::runtime::kPage, bytes) != 0) return cudaErrorMemoryAllocation;
    std::memset(*host, 0xFF, bytes);
    // The hardware lets kernels reach all of it; here only where they are meant to.
    const bool mapped = (flags & cudaHostAllocMapped) != 0;
    if (mapped) simt::RegisterDevice(*host, bytes);
    AllPinned()[simt::runtime::Key(*host)] = {bytes, true, mapped};
    return cudaSuccess;
  });
}

cudaError_t cudaMallocHost(void** host, size_t bytes) {
  return cudaHostAlloc(host, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* host) {
  Runtime& runtime = Runtime::Get();
  return runtime.Call("cudaFreeHost", [&]() -> cudaError_t {
    if (host == nullptr) return cudaSuccess;
    const auto found = AllPinned().find(simt::runtime::Key(host));
    if (found == AllPinned().end() || !found->second.owned) return cudaErrorInvalidValue;
    runtime.WaitForAll();
    if (found->second.mapped) simt::UnregisterDevice(host);
    AllPinned().erase(found);
    std::free(host);
    return cudaSuccess;
  });
}

cudaError_t cudaHostRegister(void* host, size_t bytes, unsigned int /*flags*/) {
  return Runtime::Get().Call("cudaHostRegister", [&]() -> cudaError_t {
    if (host == nullptr || bytes == 0) return cudaErrorInvalidValue;
    const auto next = AllPinned().lower_bound(simt::runtime::Key(host));
    const bool meets_next =
        next != AllPinned().end() && next->first - simt::runtime::Key(host) < bytes;
    if (meets_next || simt::runtime::FindPinned(host) != nullptr) {
      return cudaErrorHostMemoryAlreadyRegistered;
    }
    AllPinned()[simt::runtime::Key(host)] = {bytes};
    return cudaSuccess;
  });
}

cudaError_t cudaHostUnregister(void* host) {
  Runtime& runtime = Runtime::Get();
  return runtime.Call("cudaHostUnregister", [&]() -> cudaError_t {
    const auto found = AllPinned().find(simt::runtime::Key(host));
    if (found == AllPinned().end() || found->second.owned) {
      return cudaErrorHostMemoryNotRegistered;
    }
    runtime.WaitForAll();
    AllPinned().erase(found);
    return cudaSuccess;
  });
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned int flags) {
  return Runtime::Get().Call("cudaHostGetDevicePointer", [&]() -> cudaError_t {
    const auto* const found = simt::runtime::FindPinned(host);
    if (device == nullptr || flags != 0 || found == nullptr || !found->second.mapped) {
      return cudaErrorInvalidValue;
    }
    *device = host;
    return cudaSuccess;
  });
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  return Runtime::Get().Call("cudaPointerGetAttributes", [&]() -> cudaError_t {
    if (attributes == nullptr) return cudaErrorInvalidValue;
    void* const same = const_cast<void*>(pointer);
    *attributes = {};
    if (simt::runtime::IsPinned(pointer, 1)) {
      attributes->type = cudaMemoryTypeHost;
      attributes->devicePointer = attributes->hostPointer = same;
    } else if (simt::IsDevice(pointer)) {
      attributes->type = cudaMemoryTypeDevice;
      attributes->devicePointer = same;
    } else {
      attributes->type = cudaMemoryTypeUnregistered;
      attributes->device = -2;  // cudaInvalidDeviceId
      attributes->hostPointer = same;
    }
    return cudaSuccess;
  });
}
