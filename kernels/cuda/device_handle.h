// Memory of another process on the same device: opened from its handle, closed by the last holder.
#ifndef KVERN_KERNELS_CUDA_DEVICE_HANDLE_H_
#define KVERN_KERNELS_CUDA_DEVICE_HANDLE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/device_context.h"
#include "kernels/device_memory.h"

namespace kvern::cuda {

// Thread-safe. Errors: InvalidArgument/GPU_NOT_VISIBLE for another device;
// InvalidArgument/HANDLE_KIND_MISMATCH for a handle that does not open;
// InvalidArgument/REGION_OUT_OF_BOUNDS for a range outside its allocation; the device's loss.
absl::StatusOr<std::unique_ptr<DeviceMapping>> OpenDeviceHandle(
    std::shared_ptr<DeviceContext> device, const DeviceHandle& handle);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_DEVICE_HANDLE_H_
