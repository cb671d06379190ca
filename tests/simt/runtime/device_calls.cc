// The one emulated device: what it says of itself, and what its errors are called.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "simt/config.h"
#include "simt/grid.h"
#include "simt/runtime/runtime.h"

namespace {

using simt::runtime::Runtime;

constexpr int kVersion = CUDART_VERSION;
constexpr int kProcessors = 8;
constexpr int kBusId = 0x51;

// The same in every process: memory of one is mapped by another.
constexpr unsigned char kUuid[16] = {0x6B, 0x76, 0x65, 0x72, 0x6E, 0x00, 0x40, 0x00,
                                     0x80, 0x00, 0x73, 0x69, 0x6D, 0x74, 0x00, 0x01};

int DeviceCount() {
  const char* const value = std::getenv("KVERN_SIMT_DEVICES");
  return value != nullptr && std::strcmp(value, "0") == 0 ? 0 : 1;
}

cudaError_t CheckDevice(int device) {
  if (DeviceCount() == 0) return cudaErrorNoDevice;
  return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaDeviceProp Properties() {
  cudaDeviceProp properties = {};
  std::snprintf(properties.name, sizeof(properties.name), "Kvern SIMT emulator");
  std::memcpy(properties.uuid.bytes, kUuid, sizeof(kUuid));
  properties.totalGlobalMem = simt::Current().device_bytes;
  properties.sharedMemPerBlock = simt::kMaxStaticSharedBytes;
  properties.regsPerBlock = properties.regsPerMultiprocessor = 65536;
  properties.warpSize = simt::kWarpLanes;
  properties.maxThreadsPerBlock = simt::kMaxThreads;
  properties.maxThreadsDim[0] = properties.maxThreadsDim[1] = simt::kMaxThreads;
  properties.maxThreadsDim[2] = 64;
  properties.maxGridSize[0] = 0x7FFFFFFF;
  properties.maxGridSize[1] = properties.maxGridSize[2] = 65535;
  properties.totalConstMem = 65536;
  properties.major = 9;
  properties.multiProcessorCount = kProcessors;
  properties.canMapHostMemory = properties.concurrentKernels = 1;
  properties.ECCEnabled = 1;
  properties.pciBusID = kBusId;
  properties.asyncEngineCount = 2;
  properties.unifiedAddressing = 1;
  properties.memoryBusWidth = 5120;
  properties.l2CacheSize = 50 << 20;
  properties.maxThreadsPerMultiProcessor = 2048;
  properties.sharedMemPerMultiprocessor = size_t{228} << 10;
  properties.sharedMemPerBlockOptin = simt::kMaxSharedBytes;
  properties.maxBlocksPerMultiProcessor = 32;
  properties.reservedSharedMemPerBlock = 1 << 10;
  properties.hostRegisterSupported = 1;
  return properties;
}

// Negative: no such attribute here.
int64_t Attribute(cudaDeviceAttr attribute) {
  const cudaDeviceProp is = Properties();
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return is.maxThreadsPerBlock;
    case cudaDevAttrMaxGridDimX:
      return is.maxGridSize[0];
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return static_cast<int64_t>(is.sharedMemPerBlock);
    case cudaDevAttrWarpSize:
      return is.warpSize;
    case cudaDevAttrMaxRegistersPerBlock:
      return is.regsPerBlock;
    case cudaDevAttrClockRate:
      return 1'000'000;  // kHz
    case cudaDevAttrMultiProcessorCount:
      return is.multiProcessorCount;
    case cudaDevAttrIntegrated:
      return is.integrated;
    case cudaDevAttrCanMapHostMemory:
      return is.canMapHostMemory;
    case cudaDevAttrComputeMode:
      return 0;
    case cudaDevAttrConcurrentKernels:
      return is.concurrentKernels;
    case cudaDevAttrEccEnabled:
      return is.ECCEnabled;
    case cudaDevAttrPciBusId:
      return is.pciBusID;
    case cudaDevAttrPciDeviceId:
      return is.pciDeviceID;
    case cudaDevAttrMemoryClockRate:
      return 1'000'000;  // kHz
    case cudaDevAttrGlobalMemoryBusWidth:
      return is.memoryBusWidth;
    case cudaDevAttrL2CacheSize:
      return is.l2CacheSize;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return is.maxThreadsPerMultiProcessor;
    case cudaDevAttrAsyncEngineCount:
      return is.asyncEngineCount;
    case cudaDevAttrUnifiedAddressing:
      return is.unifiedAddressing;
    case cudaDevAttrPciDomainId:
      return is.pciDomainID;
    case cudaDevAttrComputeCapabilityMajor:
      return is.major;
    case cudaDevAttrComputeCapabilityMinor:
      return is.minor;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return static_cast<int64_t>(is.sharedMemPerMultiprocessor);
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return is.regsPerMultiprocessor;
    case cudaDevAttrPageableMemoryAccess:
      return is.pageableMemoryAccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return static_cast<int64_t>(is.sharedMemPerBlockOptin);
    case cudaDevAttrHostRegisterSupported:
      return is.hostRegisterSupported;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return static_cast<int64_t>(is.reservedSharedMemPerBlock);
    case cudaDevAttrMemoryPoolsSupported:
      return is.memoryPoolsSupported;
  }
  return -1;
}

}  // namespace

cudaError_t cudaDriverGetVersion(int* version) {
  if (version == nullptr) return cudaErrorInvalidValue;
  *version = DeviceCount() == 0 ? 0 : kVersion;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  if (version == nullptr) return cudaErrorInvalidValue;
  *version = kVersion;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  if (count == nullptr) return Runtime::Get().Remember(cudaErrorInvalidValue);
  *count = DeviceCount();
  return *count == 0 ? Runtime::Get().Remember(cudaErrorNoDevice) : cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return Runtime::Get().Call("cudaSetDevice", [&] { return CheckDevice(device); });
}

cudaError_t cudaGetDevice(int* device) {
  if (device == nullptr) return Runtime::Get().Remember(cudaErrorInvalidValue);
  *device = 0;
  return Runtime::Get().Remember(CheckDevice(0));
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return Runtime::Get().Call("cudaGetDeviceProperties", [&]() -> cudaError_t {
    if (properties == nullptr) return cudaErrorInvalidValue;
    const cudaError_t error = CheckDevice(device);
    if (error == cudaSuccess) *properties = Properties();
    return error;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return Runtime::Get().Call("cudaDeviceGetAttribute", [&]() -> cudaError_t {
    const cudaError_t error = CheckDevice(device);
    if (error != cudaSuccess) return error;
    const int64_t found = Attribute(attribute);
    if (value == nullptr || found < 0) return cudaErrorInvalidValue;
    *value = static_cast<int>(found);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetPCIBusId(char* bus_id, int bytes, int device) {
  return Runtime::Get().Call("cudaDeviceGetPCIBusId", [&]() -> cudaError_t {
    const cudaError_t error = CheckDevice(device);
    if (error != cudaSuccess) return error;
    if (bus_id == nullptr || bytes < 13) return cudaErrorInvalidValue;
    std::snprintf(bus_id, static_cast<size_t>(bytes), "0000:%02X:00.0", kBusId);
    return cudaSuccess;
  });
}

cudaError_t cudaGetLastError() { return Runtime::Get().Take(); }
cudaError_t cudaPeekAtLastError() { return Runtime::Get().Peek(); }
