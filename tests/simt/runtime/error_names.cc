// Names and sentences of errors.
#include <cuda.h>
#include <cuda_runtime_api.h>

namespace {

struct ErrorText {
  cudaError_t error;
  const char* name;
  const char* driver_name;
  const char* sentence;
};

#define KVERN_ERROR(error, driver, sentence) \
  { error, #error, #driver, sentence }
constexpr ErrorText kErrors[] = {
    KVERN_ERROR(cudaSuccess, CUDA_SUCCESS, "no error"),
    KVERN_ERROR(cudaErrorInvalidValue, CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    KVERN_ERROR(cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    KVERN_ERROR(cudaErrorInitializationError, CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    KVERN_ERROR(cudaErrorInvalidConfiguration, CUDA_ERROR_UNKNOWN,
                "invalid configuration argument"),
    KVERN_ERROR(cudaErrorInvalidPitchValue, CUDA_ERROR_UNKNOWN, "invalid pitch argument"),
    KVERN_ERROR(cudaErrorInvalidMemcpyDirection, CUDA_ERROR_UNKNOWN,
                "invalid copy direction for memcpy"),
    KVERN_ERROR(cudaErrorInsufficientDriver, CUDA_ERROR_UNKNOWN,
                "CUDA driver version is insufficient for CUDA runtime version"),
    KVERN_ERROR(cudaErrorDevicesUnavailable, CUDA_ERROR_DEVICE_UNAVAILABLE,
                "CUDA-capable device(s) is/are busy or unavailable"),
    KVERN_ERROR(cudaErrorInvalidDeviceFunction, CUDA_ERROR_UNKNOWN, "invalid device function"),
    KVERN_ERROR(cudaErrorNoDevice, CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    KVERN_ERROR(cudaErrorInvalidDevice, CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    KVERN_ERROR(cudaErrorDeviceUninitialized, CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    KVERN_ERROR(cudaErrorMapBufferObjectFailed, CUDA_ERROR_MAP_FAILED,
                "mapping of buffer object failed"),
    KVERN_ERROR(cudaErrorNoKernelImageForDevice, CUDA_ERROR_NO_BINARY_FOR_GPU,
                "no kernel image is available for execution on the device"),
    KVERN_ERROR(cudaErrorECCUncorrectable, CUDA_ERROR_ECC_UNCORRECTABLE,
                "uncorrectable ECC error encountered"),
    KVERN_ERROR(cudaErrorOperatingSystem, CUDA_ERROR_OPERATING_SYSTEM,
                "OS call failed or operation not supported on this OS"),
    KVERN_ERROR(cudaErrorInvalidResourceHandle, CUDA_ERROR_INVALID_HANDLE,
                "invalid resource handle"),
    KVERN_ERROR(cudaErrorSymbolNotFound, CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    KVERN_ERROR(cudaErrorNotReady, CUDA_ERROR_NOT_READY, "device not ready"),
    KVERN_ERROR(cudaErrorIllegalAddress, CUDA_ERROR_ILLEGAL_ADDRESS,
                "an illegal memory access was encountered"),
    KVERN_ERROR(cudaErrorLaunchOutOfResources, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
                "too many resources requested for launch"),
    KVERN_ERROR(cudaErrorLaunchTimeout, CUDA_ERROR_LAUNCH_TIMEOUT,
                "the launch timed out and was terminated"),
    KVERN_ERROR(cudaErrorHostMemoryAlreadyRegistered, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
                "part or all of the requested memory range is already mapped"),
    KVERN_ERROR(cudaErrorHostMemoryNotRegistered, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED,
                "pointer does not correspond to a registered memory region"),
    KVERN_ERROR(cudaErrorMisalignedAddress, CUDA_ERROR_MISALIGNED_ADDRESS, "misaligned address"),
    KVERN_ERROR(cudaErrorLaunchFailure, CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    KVERN_ERROR(cudaErrorNotPermitted, CUDA_ERROR_NOT_PERMITTED, "operation not permitted"),
    KVERN_ERROR(cudaErrorNotSupported, CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    KVERN_ERROR(cudaErrorUnknown, CUDA_ERROR_UNKNOWN, "unknown error"),
};
#undef KVERN_ERROR

const ErrorText* Find(int error) {
  for (const ErrorText& text : kErrors) {
    if (text.error == error) return &text;
  }
  return nullptr;
}

CUresult Answer(const char* text, const char** out) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  *out = text;
  return text == nullptr ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

}  // namespace

const char* cudaGetErrorName(cudaError_t error) {
  const ErrorText* const text = Find(error);
  return text == nullptr ? "unrecognized error code" : text->name;
}

const char* cudaGetErrorString(cudaError_t error) {
  const ErrorText* const text = Find(error);
  return text == nullptr ? "unrecognized error code" : text->sentence;
}

CUresult cuGetErrorName(CUresult error, const char** name) {
  const ErrorText* const text = Find(error);
  return Answer(text == nullptr ? nullptr : text->driver_name, name);
}

CUresult cuGetErrorString(CUresult error, const char** text) {
  const ErrorText* const found = Find(error);
  return Answer(found == nullptr ? nullptr : found->sentence, text);
}
