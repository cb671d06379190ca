// For sources that name the toolkit's umbrella header.
#ifndef KVERN_TESTS_SIMT_INCLUDE_CUDA_RUNTIME_H_
#define KVERN_TESTS_SIMT_INCLUDE_CUDA_RUNTIME_H_

#include <cuda_runtime_api.h>

#endif  // KVERN_TESTS_SIMT_INCLUDE_CUDA_RUNTIME_H_
