// The launches of WindowAttention. Its logits [tokens, window] are not kept, they would be many
// times the cache: two passes over the keys make them, for the softmax of each tile and for
// probabilities. Keys are centred (centre_keys.h); the constant that this takes off every logit of
// a query changes nothing.
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
  double scale = 1;                  // 1 / sqrt(head_dim)
  bool average = true;               // the pool; else the maximum
  int32_t pool_width = 5;            // odd
  bool mean_of_group = true;         // else the maximum
  const float* reference = nullptr;  // [rows, head_dim] of LaunchCentreKeys
  float* largest = nullptr;          // [tiles, group, window] dot of the tile
  double* sums = nullptr;            // [tiles, group, window] of e^(logit - largest), then what
                                     // such a term of the tile is worth as a probability
  double* shares = nullptr;  // [tiles, group, 256] attention of the window to each token, averaged
  const ScoreRow* scores = nullptr;  // [rows], out
};

// Each a block per tile.
cudaError_t LaunchWindowSums(const WindowAttentionParams& params, cudaStream_t stream);
cudaError_t LaunchWindowShares(const WindowAttentionParams& params, cudaStream_t stream);
// Turns sums of the tiles into weights, a block per row.
cudaError_t LaunchWindowWeights(const WindowAttentionParams& params, cudaStream_t stream);
// Pools over tokens and reduces the group, a block per row.
cudaError_t LaunchWindowAttention(const WindowAttentionParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_WINDOW_ATTENTION_H_
