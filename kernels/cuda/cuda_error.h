// CUDA error codes as statuses: what happened in plain words, and which end a context.
#ifndef KVERN_KERNELS_CUDA_CUDA_ERROR_H_
#define KVERN_KERNELS_CUDA_CUDA_ERROR_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

// False for errors of one call, after which the context works as before. Whatever is not known to
// be one of those counts as sticky: every later call would return it too.
bool IsSticky(cudaError_t error);

// "a kernel touched an address outside its memory: cudaErrorIllegalAddress".
std::string Describe(cudaError_t error);

// Of a call that is not sticky. `what` names the op or the step, e.g. "top_k".
// ResourceExhausted: no memory; else Internal.
absl::Status CallStatus(absl::string_view what, cudaError_t error);

// Internal/DEVICE_LOST: `reason` in plain words.
absl::Status LostStatus(absl::string_view what, absl::string_view reason);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_CUDA_ERROR_H_
