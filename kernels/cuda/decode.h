// The launch of Decode.
#ifndef KVERN_KERNELS_CUDA_DECODE_H_
#define KVERN_KERNELS_CUDA_DECODE_H_

#include "kernels/cuda/coded_row.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

struct DecodeParams {
  CodingParams coding;
};

cudaError_t LaunchDecode(const DecodeParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_DECODE_H_
