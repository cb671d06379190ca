// The rest of the driver API, and how the runtime hands out its functions.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstring>

#include "simt/memory.h"
#include "simt/runtime/host_memory.h"
#include "simt/runtime/runtime.h"

namespace {

using simt::runtime::Runtime;

template <class Body>
CUresult Call(const char* name, Body&& body) {
  return static_cast<CUresult>(Runtime::Get().CallQuietly(
      name, [&] { return static_cast<cudaError_t>(static_cast<CUresult>(body())); }));
}

const void* Pointer(CUdeviceptr address) { return reinterpret_cast<const void*>(address); }

struct DriverFunction {
  const char* name;
  unsigned int version;  // that brought it
  void (*function)();
};

template <class F>
DriverFunction Entry(const char* name, unsigned int version, F* function) {
  return {name, version, reinterpret_cast<void (*)()>(function)};
}

const DriverFunction* FindFunction(const char* name) {
  static const DriverFunction kFunctions[] = {
      Entry("cuInit", 2000, cuInit),
      Entry("cuDriverGetVersion", 2020, cuDriverGetVersion),
      Entry("cuDeviceGet", 2000, cuDeviceGet),
      Entry("cuDeviceGetAttribute", 2000, cuDeviceGetAttribute),
      Entry("cuGetErrorName", 6000, cuGetErrorName),
      Entry("cuGetErrorString", 6000, cuGetErrorString),
      Entry("cuMemGetAllocationGranularity", 10020, cuMemGetAllocationGranularity),
      Entry("cuMemCreate", 10020, cuMemCreate),
      Entry("cuMemRelease", 10020, cuMemRelease),
      Entry("cuMemExportToShareableHandle", 10020, cuMemExportToShareableHandle),
      Entry("cuMemImportFromShareableHandle", 10020, cuMemImportFromShareableHandle),
      Entry("cuMemAddressReserve", 10020, cuMemAddressReserve),
      Entry("cuMemAddressFree", 10020, cuMemAddressFree),
      Entry("cuMemMap", 10020, cuMemMap),
      Entry("cuMemUnmap", 10020, cuMemUnmap),
      Entry("cuMemSetAccess", 10020, cuMemSetAccess),
      Entry("cuMemGetAddressRange", 3020, cuMemGetAddressRange),
      Entry("cuPointerGetAttribute", 4000, cuPointerGetAttribute),
  };
  for (const DriverFunction& function : kFunctions) {
    if (std::strcmp(function.name, name) == 0) return &function;
  }
  return nullptr;
}

}  // namespace

CUresult cuInit(unsigned int flags) {
  int count = 0;
  if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
  return cudaGetDeviceCount(&count) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}

CUresult cuDriverGetVersion(int* version) {
  return static_cast<CUresult>(cudaDriverGetVersion(version));
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
  *device = 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
      *value = 1;
      return CUDA_SUCCESS;
    default:  // the others have the runtime's numbers
      return static_cast<CUresult>(
          cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(attribute), device));
  }
}

CUresult cuMemGetAddressRange(CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
  return Call("cuMemGetAddressRange", [&] {
    const auto found = simt::FindAllocation(Pointer(address));
    if (!found) return CUDA_ERROR_NOT_FOUND;
    if (base != nullptr) *base = reinterpret_cast<CUdeviceptr>(found->begin);
    if (bytes != nullptr) *bytes = found->bytes;
    return CUDA_SUCCESS;
  });
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  return Call("cuPointerGetAttribute", [&] {
    const bool pinned = simt::runtime::IsPinned(Pointer(address), 1);
    const auto found = simt::FindAllocation(Pointer(address));
    if (value == nullptr || (!pinned && !found)) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
      case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *static_cast<unsigned int*>(value) = pinned ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
        return CUDA_SUCCESS;
      case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *static_cast<int*>(value) = 0;
        return CUDA_SUCCESS;
      case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
        *static_cast<bool*>(value) = !pinned && !found->foreign;
        return CUDA_SUCCESS;
      case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        if (pinned) return CUDA_ERROR_INVALID_VALUE;
        *static_cast<CUdeviceptr*>(value) = reinterpret_cast<CUdeviceptr>(found->begin);
        return CUDA_SUCCESS;
      case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        if (pinned) return CUDA_ERROR_INVALID_VALUE;
        *static_cast<size_t*>(value) = found->bytes;
        return CUDA_SUCCESS;
    }
    return CUDA_ERROR_INVALID_VALUE;
  });
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function,
                                             unsigned int version, unsigned long long /*flags*/,
                                             cudaDriverEntryPointQueryResult* result) {
  return Runtime::Get().Call("cudaGetDriverEntryPointByVersion", [&]() -> cudaError_t {
    if (symbol == nullptr || function == nullptr) return cudaErrorInvalidValue;
    const DriverFunction* const found = FindFunction(symbol);
    const bool usable = found != nullptr && found->version <= version;
    *function = usable ? reinterpret_cast<void*>(found->function) : nullptr;
    if (result != nullptr) {
      *result = usable             ? cudaDriverEntryPointSuccess
                : found == nullptr ? cudaDriverEntryPointSymbolNotFound
                                   : cudaDriverEntryPointVersionNotSufficent;
    }
    return cudaSuccess;
  });
}
