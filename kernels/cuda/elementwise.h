// The launches of Scale, Blend and HideScores.
#ifndef KVERN_KERNELS_CUDA_ELEMENTWISE_H_
#define KVERN_KERNELS_CUDA_ELEMENTWISE_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/score_grid.h"

namespace kvern::cuda {

inline constexpr int32_t kElementwiseRun = 2048;  // tokens of a block; grids below have such runs

struct ScaleParams {
  ScoreGrid grid;
  const ScoreRow* scores = nullptr;  // in place
  float factor = 1.0f;
};

struct BlendParams {
  ScoreGrid grid;
  const ScoreRow* scores = nullptr;
  const ScoreRow* accumulated = nullptr;  // in place
  bool sum = false;                       // of both, else the larger
};

struct HideScoresParams {
  ScoreGrid grid;
  const ScoreRow* scores = nullptr;  // in place
  const MaskRow* candidates = nullptr;
  int64_t* nan_candidates = nullptr;  // [sequences], adds to it
};

cudaError_t LaunchScale(const ScaleParams& params, cudaStream_t stream);
cudaError_t LaunchBlend(const BlendParams& params, cudaStream_t stream);
cudaError_t LaunchHideScores(const HideScoresParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ELEMENTWISE_H_
