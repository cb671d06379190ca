// The words are ours, so that a log line says what to do without a table of codes.
#include "kernels/cuda/cuda_error.h"

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"

namespace kvern::cuda {
namespace {

const char* Words(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "no memory left";
    case cudaErrorNoDevice:
      return "no device answered";
    case cudaErrorInsufficientDriver:
      return "the driver is missing or older than this build";
    case cudaErrorInvalidDevice:
      return "no such device";
    case cudaErrorIllegalAddress:
      return "a kernel touched an address outside its memory";
    case cudaErrorMisalignedAddress:
      return "a kernel touched a misaligned address";
    case cudaErrorLaunchFailure:
      return "a kernel failed";
    case cudaErrorLaunchTimeout:
      return "a kernel ran longer than the driver allows";
    case cudaErrorECCUncorrectable:
      return "device memory has an error that could not be corrected";
    case cudaErrorDevicesUnavailable:
      return "the device is busy or gone";
    case cudaErrorNoKernelImageForDevice:
      return "this build has no code for the device";
    default:
      return "a call failed";
  }
}

}  // namespace

bool IsSticky(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
    case cudaErrorNotReady:
    case cudaErrorMemoryAllocation:
    case cudaErrorInvalidValue:
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorNotSupported:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorNoKernelImageForDevice:
      return false;
    default:
      return true;
  }
}

std::string Describe(cudaError_t error) {
  return absl::StrCat(Words(error), ": ", cudaGetErrorName(error));
}

absl::Status CallStatus(absl::string_view what, cudaError_t error) {
  const std::string message = absl::StrCat("device: ", what, ": ", Describe(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

absl::Status LostStatus(absl::string_view what, absl::string_view reason) {
  return WithReason(absl::InternalError(absl::StrCat("device: lost during ", what, ": ", reason,
                                                     "; restart the process")),
                    "DEVICE_LOST");
}

}  // namespace kvern::cuda
