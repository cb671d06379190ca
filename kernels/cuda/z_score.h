// The launch of ZScore.
#ifndef KVERN_KERNELS_CUDA_Z_SCORE_H_
#define KVERN_KERNELS_CUDA_Z_SCORE_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

struct ZScoreParams {
  const ScoreRow* scores = nullptr;  // [rows], in place
  const MaskRow* candidates = nullptr;
  const int32_t* tokens = nullptr;  // [rows], of each score row
  int64_t rows = 0;
};

cudaError_t LaunchZScore(const ZScoreParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_Z_SCORE_H_
