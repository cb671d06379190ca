// The launch of RowNorms.
#ifndef KVERN_KERNELS_CUDA_ROW_NORMS_H_
#define KVERN_KERNELS_CUDA_ROW_NORMS_H_

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/score_grid.h"

namespace kvern::cuda {

inline constexpr int32_t kRowNormsRun = 256;  // tokens of a block

struct RowNormsParams {
  Rows rows;
  const ScoreRow* norms = nullptr;  // out, one per row
  ScoreGrid grid;                   // over the score rows, in runs of kRowNormsRun
};

cudaError_t LaunchRowNorms(const RowNormsParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ROW_NORMS_H_
