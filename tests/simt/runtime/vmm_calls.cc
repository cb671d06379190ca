// Virtual memory management: an allocation is an unnamed shared memory object, its shareable handle
// the object's file descriptor, a reservation a range of pages that fault.
#include <cuda.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "simt/config.h"
#include "simt/memory.h"
#include "simt/runtime/runtime.h"
#include "simt/runtime/vmm.h"

namespace simt::runtime {
namespace {

constexpr size_t kGranularity = size_t{2} << 20;
constexpr char kObjectName[] = "kvern_simt_allocation";

// Lives while a handle or a mapping holds it.
struct Object {
  int file = -1;
  size_t bytes = 0;
  bool created_here = false;
  bool exportable = false;
  ~Object();
};

struct Mapping {
  size_t bytes = 0;
  std::shared_ptr<Object> object;
  bool accessible = false;
};

struct Vmm {
  std::map<CUmemGenericAllocationHandle, std::shared_ptr<Object>> handles;
  std::map<CUdeviceptr, size_t> reservations;
  std::map<CUdeviceptr, Mapping> mappings;
  CUmemGenericAllocationHandle next_handle = 1;
  size_t created_bytes = 0;
};

Vmm& State() {
  static Vmm* const state = new Vmm;
  return *state;
}

Object::~Object() {
  close(file);
  if (created_here) State().created_bytes -= bytes;
}

void* Address(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

template <class Body>
CUresult Call(const char* name, Body&& body) {
  return static_cast<CUresult>(Runtime::Get().CallQuietly(
      name, [&] { return static_cast<cudaError_t>(static_cast<CUresult>(body())); }));
}

bool Granular(size_t bytes) { return bytes > 0 && bytes % kGranularity == 0; }

bool Supported(const CUmemAllocationProp* properties) {
  return properties != nullptr && properties->type == CU_MEM_ALLOCATION_TYPE_PINNED &&
         properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE && properties->location.id == 0;
}

bool Inside(const std::map<CUdeviceptr, size_t>& ranges, CUdeviceptr address, size_t bytes) {
  auto next = ranges.upper_bound(address);
  if (next == ranges.begin()) return false;
  --next;
  const size_t offset = address - next->first;
  return offset <= next->second && bytes <= next->second - offset;
}

bool MeetsMapping(CUdeviceptr address, size_t bytes) {
  for (const auto& [begin, mapping] : State().mappings) {
    if (begin < address + bytes && address < begin + mapping.bytes) return true;
  }
  return false;
}

bool IsOurObject(int file) {
  char target[128] = {};
  const std::string link = "/proc/self/fd/" + std::to_string(file);
  const ssize_t length = readlink(link.c_str(), target, sizeof(target) - 1);
  return length > 0 && std::string(target).rfind(std::string("/memfd:") + kObjectName, 0) == 0;
}

// Pages that fault, over whatever is there.
bool Hide(CUdeviceptr address, size_t bytes) {
  return mmap(Address(address), bytes, PROT_NONE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

CUmemGenericAllocationHandle NewHandle(std::shared_ptr<Object> object) {
  State().handles.emplace(State().next_handle, std::move(object));
  return State().next_handle++;
}

}  // namespace

size_t MappableBytesUsed() { return State().created_bytes; }

}  // namespace simt::runtime

using simt::runtime::Call;
using simt::runtime::kGranularity;
using simt::runtime::Object;
using simt::runtime::State;

CUresult cuMemGetAllocationGranularity(size_t* bytes, const CUmemAllocationProp* properties,
                                       CUmemAllocationGranularity_flags /*option*/) {
  return Call("cuMemGetAllocationGranularity", [&] {
    if (bytes == nullptr || !simt::runtime::Supported(properties)) return CUDA_ERROR_INVALID_VALUE;
    *bytes = kGranularity;
    return CUDA_SUCCESS;
  });
}

CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t bytes,
                     const CUmemAllocationProp* properties, unsigned long long flags) {
  return Call("cuMemCreate", [&] {
    if (handle == nullptr || flags != 0 || !simt::runtime::Supported(properties) ||
        !simt::runtime::Granular(bytes)) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    const size_t used = simt::DeviceBytesUsed() + simt::runtime::MappableBytesUsed();
    if (bytes > simt::Current().device_bytes - used) return CUDA_ERROR_OUT_OF_MEMORY;
    auto object = std::make_shared<Object>();
    object->file = memfd_create(simt::runtime::kObjectName, MFD_CLOEXEC);
    if (object->file < 0 || ftruncate(object->file, static_cast<off_t>(bytes)) != 0) {
      return CUDA_ERROR_OUT_OF_MEMORY;
    }
    object->bytes = bytes;
    object->created_here = true;
    object->exportable =
        properties->requestedHandleTypes == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    State().created_bytes += bytes;
    *handle = simt::runtime::NewHandle(std::move(object));
    return CUDA_SUCCESS;
  });
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  return Call("cuMemRelease", [&] {
    return State().handles.erase(handle) == 1 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  });
}

CUresult cuMemExportToShareableHandle(void* shareable, CUmemGenericAllocationHandle handle,
                                      CUmemAllocationHandleType type, unsigned long long flags) {
  return Call("cuMemExportToShareableHandle", [&] {
    const auto found = State().handles.find(handle);
    if (shareable == nullptr || flags != 0 || found == State().handles.end() ||
        type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || !found->second->exportable) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    const int file = fcntl(found->second->file, F_DUPFD_CLOEXEC, 0);
    if (file < 0) return CUDA_ERROR_OPERATING_SYSTEM;
    *static_cast<int*>(shareable) = file;
    return CUDA_SUCCESS;
  });
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* handle, void* shareable,
                                        CUmemAllocationHandleType type) {
  return Call("cuMemImportFromShareableHandle", [&] {
    const int file = static_cast<int>(reinterpret_cast<intptr_t>(shareable));
    struct stat status = {};
    if (handle == nullptr || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
        fstat(file, &status) != 0 || !simt::runtime::IsOurObject(file)) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    auto object = std::make_shared<Object>();
    object->file = fcntl(file, F_DUPFD_CLOEXEC, 0);
    if (object->file < 0) return CUDA_ERROR_OPERATING_SYSTEM;
    object->bytes = static_cast<size_t>(status.st_size);
    object->exportable = true;
    *handle = simt::runtime::NewHandle(std::move(object));
    return CUDA_SUCCESS;
  });
}

CUresult cuMemAddressReserve(CUdeviceptr* address, size_t bytes, size_t alignment,
                             CUdeviceptr /*wanted*/, unsigned long long flags) {
  return Call("cuMemAddressReserve", [&] {
    const size_t step = std::max(alignment, kGranularity);
    if (address == nullptr || flags != 0 || !simt::runtime::Granular(bytes) ||
        (step & (step - 1)) != 0) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    // Too much by one step, to cut an aligned piece out of it; one page behind it faults.
    constexpr size_t kPage = 4096;
    void* const raw = mmap(nullptr, bytes + step + kPage, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    const auto first = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t begin = (first + step - 1) & ~(step - 1);
    if (begin > first) munmap(raw, begin - first);
    const uintptr_t end = begin + bytes + kPage;
    if (first + bytes + step + kPage > end) {
      munmap(reinterpret_cast<void*>(end), first + bytes + step + kPage - end);
    }
    *address = begin;
    State().reservations.emplace(begin, bytes);
    return CUDA_SUCCESS;
  });
}

CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  return Call("cuMemAddressFree", [&] {
    const auto found = State().reservations.find(address);
    if (found == State().reservations.end() || found->second != bytes ||
        simt::runtime::MeetsMapping(address, bytes)) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    constexpr size_t kPage = 4096;
    munmap(simt::runtime::Address(address), bytes + kPage);
    State().reservations.erase(found);
    return CUDA_SUCCESS;
  });
}

CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset,
                  CUmemGenericAllocationHandle handle, unsigned long long flags) {
  return Call("cuMemMap", [&] {
    const auto found = State().handles.find(handle);
    if (flags != 0 || offset != 0 || found == State().handles.end() ||
        !simt::runtime::Granular(bytes) || bytes > found->second->bytes ||
        !simt::runtime::Inside(State().reservations, address, bytes)) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (simt::runtime::MeetsMapping(address, bytes)) return CUDA_ERROR_ALREADY_MAPPED;
    State().mappings[address] = {bytes, found->second, false};
    return CUDA_SUCCESS;
  });
}

CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc* access,
                        size_t count) {
  return Call("cuMemSetAccess", [&] {
    const auto found = State().mappings.find(address);
    if (found == State().mappings.end() || found->second.bytes != bytes || access == nullptr ||
        count != 1 || access->location.type != CU_MEM_LOCATION_TYPE_DEVICE ||
        access->location.id != 0) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    simt::runtime::Mapping& mapping = found->second;
    if (std::exchange(mapping.accessible, false)) {
      simt::UnregisterDevice(simt::runtime::Address(address));
    }
    if (access->flags == CU_MEM_ACCESS_FLAGS_PROT_NONE) {
      return simt::runtime::Hide(address, bytes) ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
    }
    const int protection =
        access->flags == CU_MEM_ACCESS_FLAGS_PROT_READ ? PROT_READ : PROT_READ | PROT_WRITE;
    if (mmap(simt::runtime::Address(address), bytes, protection, MAP_SHARED | MAP_FIXED,
             mapping.object->file, 0) == MAP_FAILED) {
      return CUDA_ERROR_MAP_FAILED;
    }
    mapping.accessible = true;
    simt::RegisterDevice(simt::runtime::Address(address), bytes);
    return CUDA_SUCCESS;
  });
}

// Does not wait for the device: what still runs on the range is an illegal access.
CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  return Call("cuMemUnmap", [&] {
    const auto found = State().mappings.find(address);
    if (found == State().mappings.end() || found->second.bytes != bytes) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    if (found->second.accessible) simt::UnregisterDevice(simt::runtime::Address(address));
    State().mappings.erase(found);
    return simt::runtime::Hide(address, bytes) ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
  });
}
