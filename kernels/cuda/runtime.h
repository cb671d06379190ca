// The CUDA runtime as host code sees it: the toolkit's header, or the emulator's in tests/simt
// (whose include folder then comes first).
#ifndef KVERN_KERNELS_CUDA_RUNTIME_H_
#define KVERN_KERNELS_CUDA_RUNTIME_H_

#include <cuda_runtime_api.h>

#endif  // KVERN_KERNELS_CUDA_RUNTIME_H_
