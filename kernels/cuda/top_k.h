// The launch of top_k: the best candidates of every row, and the forced tokens.
#ifndef KVERN_KERNELS_CUDA_TOP_K_H_
#define KVERN_KERNELS_CUDA_TOP_K_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

// One (sequence, layer, kv_head).
struct TopKRow {
  int32_t* keep = nullptr;  // out [forced + picks], ascending
  int32_t tokens = 0;
  int32_t picks = 0;  // candidates to keep, at most those there are
};

struct TopKParams {
  const TopKRow* rows = nullptr;
  const ScoreRow* scores = nullptr;     // [rows]
  const MaskRow* candidates = nullptr;  // [rows]
  const MaskRow* forced = nullptr;      // [rows]
  int64_t row_count = 0;
  bool newest_wins = true;  // between equal scores; else the oldest
};

// One launch, a block per row. Reads each row at most four times.
cudaError_t LaunchTopK(const TopKParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_TOP_K_H_
