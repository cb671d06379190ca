// The launches of WindowAttention. Its logits [tokens, window] are not kept, they would be many
// times the cache: three passes over the keys make them again, for maxima, sums and probabilities.
#ifndef KVERN_KERNELS_CUDA_WINDOW_ATTENTION_H_
#define KVERN_KERNELS_CUDA_WINDOW_ATTENTION_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

struct WindowAttentionParams {
  Rows rows;
  const float* const* queries = nullptr;  // [sequences] -> [layers, q_heads, window, head_dim]
  int32_t q_heads = 0;
  int32_t group = 0;  // query heads per kv_head
  int32_t window = 0;
  double scale = 1;                   // 1 / sqrt(head_dim)
  bool average = true;                // the pool; else the maximum
  int32_t pool_width = 5;             // odd
  bool mean_of_group = true;          // else the maximum
  const float* reference = nullptr;   // [rows, head_dim] of LaunchCentreKeys
  const double* constants = nullptr;  // [rows, group, window]
  double* tiles =
      nullptr;  // [tiles, group, window]: largest logits, then sums of e^(logit - largest)
  double* largest = nullptr;  // [rows, group, window]
  double* sums = nullptr;     // [rows, group, window]
  double* shares = nullptr;   // [tiles, group, 256] attention of the window to each token, averaged
  const ScoreRow* scores = nullptr;  // [rows], out
};

// Each a block per tile.
cudaError_t LaunchWindowMaxima(const WindowAttentionParams& params, cudaStream_t stream);
cudaError_t LaunchWindowSums(const WindowAttentionParams& params, cudaStream_t stream);
cudaError_t LaunchWindowShares(const WindowAttentionParams& params, cudaStream_t stream);
// Combine what the tiles found, a block per row.
cudaError_t LaunchWindowLargest(const WindowAttentionParams& params, cudaStream_t stream);
cudaError_t LaunchWindowTotals(const WindowAttentionParams& params, cudaStream_t stream);
// Pools over tokens and reduces the group, a block per row.
cudaError_t LaunchWindowAttention(const WindowAttentionParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_WINDOW_ATTENTION_H_
