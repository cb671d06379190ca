// Two kinds of handle: CUDA IPC (64 bytes, of cudaMalloc memory) and an exported allocation of the
// virtual memory API (a file descriptor). The driver's functions are found at run time, so that the
// program starts where there is no driver.
#include "kernels/cuda/device_handle.h"

#include <cuda.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/cuda_error.h"

namespace kvern::cuda {
namespace {

constexpr unsigned kDriverVersion = 12000;  // of the functions' forms below

absl::Status Refused(const char* reason, const std::string& what) {
  return WithReason(absl::InvalidArgumentError(absl::StrCat("device memory: ", what)), reason);
}
absl::Status DoesNotOpen(const char* kind) {
  return Refused("HANDLE_KIND_MISMATCH",
                 absl::StrCat("got a handle that does not open, want one of ", kind,
                              " that its owner still holds, from another process"));
}

template <class Function>
Function* DriverFunction(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &function, kDriverVersion, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return reinterpret_cast<Function*>(function);
}

// offset + size <= bytes, without overflow.
absl::Status CheckRange(const DeviceHandle& handle, int64_t bytes) {
  if (handle.size_bytes > 0 && handle.offset_bytes >= 0 && handle.offset_bytes <= bytes &&
      handle.size_bytes <= bytes - handle.offset_bytes) {
    return absl::OkStatus();
  }
  return Refused("REGION_OUT_OF_BOUNDS",
                 absl::StrCat("got ", handle.size_bytes, " bytes at offset ", handle.offset_bytes,
                              ", want a range inside the allocation of ", bytes, " bytes"));
}

class Mapping : public DeviceMapping {
 public:
  Mapping(std::shared_ptr<DeviceContext> device, const DeviceHandle& handle)
      : device_(std::move(device)), offset_(handle.offset_bytes), size_(handle.size_bytes) {}
  std::byte* Data() const override { return base_ + offset_; }
  int64_t SizeBytes() const override { return size_; }

 protected:
  void Map(std::byte* base) {
    base_ = base;
    device_->Adopt(Data(), size_);
  }
  // False once the device is lost: nothing calls CUDA then.
  bool MayUnmap() {
    if (base_ == nullptr) return false;
    device_->Forget(Data(), size_);
    // Ops that read it may still run.
    return device_->Drain(Ask::kNothing, "unmapping memory").ok();
  }

  const std::shared_ptr<DeviceContext> device_;
  std::byte* base_ = nullptr;

 private:
  const int64_t offset_;
  const int64_t size_;
};

class IpcMapping final : public Mapping {
 public:
  using Mapping::Mapping;
  ~IpcMapping() override {
    if (MayUnmap() && cudaIpcCloseMemHandle(base_) != cudaSuccess) {
      (void)device_->Probe("unmapping memory");
    }
  }
  absl::Status Open(const DeviceHandle& handle) {
    cudaIpcMemHandle_t ipc;
    static_assert(sizeof(ipc) == sizeof(handle.ipc));
    std::memcpy(&ipc, handle.ipc.data(), sizeof(ipc));
    void* base = nullptr;
    if (const cudaError_t error = cudaIpcOpenMemHandle(&base, ipc, cudaIpcMemLazyEnablePeerAccess);
        error != cudaSuccess) {
      if (error == cudaErrorMemoryAllocation) return CallStatus("opening memory", error);
      return DoesNotOpen("cudaMalloc memory (CUDA IPC)");
    }
    Map(static_cast<std::byte*>(base));
    auto* const range = DriverFunction<decltype(cuMemGetAddressRange)>("cuMemGetAddressRange");
    size_t bytes = 0;
    if (range == nullptr ||
        range(nullptr, &bytes, reinterpret_cast<CUdeviceptr>(base)) != CUDA_SUCCESS) {
      return DoesNotOpen("an allocation whose size the driver tells");
    }
    return CheckRange(handle, static_cast<int64_t>(bytes));
  }
};

// The functions of the virtual memory API that mapping takes.
struct VirtualMemory {
  decltype(cuMemImportFromShareableHandle)* import =
      DriverFunction<decltype(cuMemImportFromShareableHandle)>("cuMemImportFromShareableHandle");
  decltype(cuMemAddressReserve)* reserve =
      DriverFunction<decltype(cuMemAddressReserve)>("cuMemAddressReserve");
  decltype(cuMemMap)* map = DriverFunction<decltype(cuMemMap)>("cuMemMap");
  decltype(cuMemSetAccess)* set_access = DriverFunction<decltype(cuMemSetAccess)>("cuMemSetAccess");
  decltype(cuMemUnmap)* unmap = DriverFunction<decltype(cuMemUnmap)>("cuMemUnmap");
  decltype(cuMemAddressFree)* free = DriverFunction<decltype(cuMemAddressFree)>("cuMemAddressFree");
  decltype(cuMemRelease)* release = DriverFunction<decltype(cuMemRelease)>("cuMemRelease");

  bool Found() const {
    return import != nullptr && reserve != nullptr && map != nullptr && set_access != nullptr &&
           unmap != nullptr && free != nullptr && release != nullptr;
  }
};

class FileMapping final : public Mapping {
 public:
  using Mapping::Mapping;
  ~FileMapping() override {
    if (!MayUnmap()) return;
    if (mapped_) memory_.unmap(Address(), bytes_);
    memory_.free(Address(), bytes_);
  }
  // The whole allocation is mapped, which is as long as `allocation_bytes`: one that is shorter
  // cannot be.
  absl::Status Open(const DeviceHandle& handle) {
    if (!memory_.Found()) return DoesNotOpen("a driver with virtual memory management");
    KVERN_RETURN_IF_ERROR(CheckRange(handle, handle.offset_bytes + handle.size_bytes));
    CUmemGenericAllocationHandle allocation = 0;
    void* const descriptor = reinterpret_cast<void*>(static_cast<intptr_t>(handle.file));
    if (memory_.import(&allocation, descriptor, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) !=
        CUDA_SUCCESS) {
      return DoesNotOpen("an allocation exported as a file descriptor");
    }
    absl::Status status = MapAllocation(allocation, handle);
    memory_.release(allocation);  // the mapping keeps it
    return status;
  }

 private:
  CUdeviceptr Address() const { return reinterpret_cast<CUdeviceptr>(base_); }

  absl::Status MapAllocation(CUmemGenericAllocationHandle allocation, const DeviceHandle& handle) {
    bytes_ = static_cast<size_t>(AlignUp(handle.offset_bytes + handle.size_bytes, kGranularity));
    CUdeviceptr base = 0;
    if (memory_.reserve(&base, bytes_, 0, 0, 0) != CUDA_SUCCESS) {
      return absl::ResourceExhaustedError("device memory: got no addresses to map it at");
    }
    Map(reinterpret_cast<std::byte*>(base));
    mapped_ = memory_.map(base, bytes_, 0, allocation, 0) == CUDA_SUCCESS;
    if (!mapped_) {
      return Refused("REGION_OUT_OF_BOUNDS",
                     absl::StrCat("got an allocation that holds fewer than ", bytes_,
                                  " bytes, want offset and size inside it"));
    }
    CUmemAccessDesc access = {};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = device_->ordinal();
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (memory_.set_access(base, bytes_, &access, 1) != CUDA_SUCCESS) {
      return Refused("GPU_NOT_VISIBLE", "got an allocation of another device, want this one's");
    }
    return absl::OkStatus();
  }

  // Sizes of exportable allocations are multiples of it on all devices so far.
  static constexpr int64_t kGranularity = int64_t{2} << 20;
  const VirtualMemory memory_;
  size_t bytes_ = 0;
  bool mapped_ = false;
};

template <class Kind>
absl::StatusOr<std::unique_ptr<DeviceMapping>> Open(std::shared_ptr<DeviceContext> device,
                                                    const DeviceHandle& handle) {
  auto mapping = std::make_unique<Kind>(device, handle);
  const absl::Status status = mapping->Open(handle);
  if (status.ok()) return mapping;
  // Which errors a bad handle gives is not written anywhere: it must not pass for a lost device.
  KVERN_RETURN_IF_ERROR(device->Probe("opening memory"));
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMapping>> OpenDeviceHandle(
    std::shared_ptr<DeviceContext> device, const DeviceHandle& handle) {
  KVERN_RETURN_IF_ERROR(device->Enter());
  const std::string uuid = device->Facts().uuid;
  if (handle.device_uuid != uuid) {
    return Refused("GPU_NOT_VISIBLE",
                   absl::StrCat("got one of device ", handle.device_uuid, ", want ", uuid));
  }
  constexpr int64_t kLargest = int64_t{1} << 48;
  if (handle.offset_bytes < 0 || handle.size_bytes < 1 || handle.offset_bytes > kLargest ||
      handle.size_bytes > kLargest) {
    return Refused("REGION_OUT_OF_BOUNDS",
                   absl::StrCat("got ", handle.size_bytes, " bytes at offset ", handle.offset_bytes,
                                ", want a range of 1 byte to 256 TiB"));
  }
  return handle.kind == DeviceHandle::Kind::kCudaIpc ? Open<IpcMapping>(std::move(device), handle)
                                                     : Open<FileMapping>(std::move(device), handle);
}

}  // namespace kvern::cuda
