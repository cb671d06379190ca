// The launch of AttentionMass.
#ifndef KVERN_KERNELS_CUDA_ATTENTION_MASS_H_
#define KVERN_KERNELS_CUDA_ATTENTION_MASS_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/score_grid.h"

namespace kvern::cuda {

inline constexpr int32_t kAttentionMassRun = 256;  // tokens of a block

struct VisibleRow {
  const double* data = nullptr;  // dense, one per token
};

struct AttentionMassParams {
  Rows values;                          // read with value_norm only
  const ScoreRow* mass = nullptr;       // [rows]
  const VisibleRow* visible = nullptr;  // [rows]; null: not divided by
  const ScoreRow* scores = nullptr;     // [rows], out
  ScoreGrid grid;                       // over the score rows, in runs of kAttentionMassRun
  bool value_norm = false;
  bool log = false;
};

cudaError_t LaunchAttentionMass(const AttentionMassParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ATTENTION_MASS_H_
