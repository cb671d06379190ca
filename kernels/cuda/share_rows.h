// The launch of ShareRows.
#ifndef KVERN_KERNELS_CUDA_SHARE_ROWS_H_
#define KVERN_KERNELS_CUDA_SHARE_ROWS_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/score_grid.h"

namespace kvern::cuda {

inline constexpr int32_t kShareRowsRun = 512;  // tokens of a block

// Rows that get one answer.
struct RowGroup {
  int64_t first = 0;  // of its entries in `members`
  int32_t size = 0;   // > 0
};

struct ShareRowsParams {
  ScoreGrid grid;                    // its rows are groups; runs of kShareRowsRun
  const RowGroup* groups = nullptr;  // a row of the cohort is in one group at most
  const int64_t* members = nullptr;  // rows of the cohort, in the order they are added
  bool mean = false;                 // else the largest
  const ScoreRow* scores = nullptr;  // in place
};

cudaError_t LaunchShareRows(const ShareRowsParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_SHARE_ROWS_H_
