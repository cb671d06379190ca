// Score views as ops hand them to Op and to grids.
#ifndef KVERN_KERNELS_CUDA_SCORE_VIEWS_H_
#define KVERN_KERNELS_CUDA_SCORE_VIEWS_H_

#include <span>
#include <vector>

#include "kernels/base/tensor_view.h"
#include "kernels/cuda/score_grid.h"

namespace kvern::cuda {

// For Op::AddScores with Access::kRead, which takes one type of view for both directions.
inline ScoreView ReadOnly(const ConstScoreView& view) {
  ScoreView scores;
  scores.data = const_cast<float*>(view.data);
  for (int axis = 0; axis < 3; ++axis) {
    scores.shape[axis] = view.shape[axis];
    scores.stride[axis] = view.stride[axis];
  }
  return scores;
}

// Every row of every view.
inline std::vector<SequenceRows> RowsOf(std::span<const ScoreView> cohort) {
  std::vector<SequenceRows> rows;
  for (const ScoreView& scores : cohort) {
    rows.push_back({scores.shape[0] * scores.shape[1], scores.shape[2]});
  }
  return rows;
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_SCORE_VIEWS_H_
