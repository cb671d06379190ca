// The launches of ExpectedAttention: reference keys (centre_keys.h), logits of every query head and
// norms of the values, then scores.
#ifndef KVERN_KERNELS_CUDA_EXPECTED_ATTENTION_H_
#define KVERN_KERNELS_CUDA_EXPECTED_ATTENTION_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

// Query moments of one sequence, dense.
struct QueryMoments {
  const double* linear = nullptr;    // [layers, q_heads, head_dim]
  const double* factors = nullptr;   // [layers, q_heads, rank, head_dim]
  const double* diagonal = nullptr;  // [layers, q_heads, head_dim]; unused with full
};

struct SoftMaxTotal {
  double largest;  // of the finite logits
  double sum;      // of e^(logit - largest), in token order
};

struct ExpectedAttentionParams {
  Rows rows;                              // keys
  Rows values;                            // with value_norm
  const QueryMoments* moments = nullptr;  // [sequences]
  const MaskRow* counted = nullptr;       // [rows]
  const float* reference = nullptr;       // [rows, head_dim]; unused with full
  int32_t q_heads = 0;
  int32_t group = 0;  // query heads per kv_head
  int32_t rank = 0;
  bool full = false;
  double epsilon = 0;
  bool value_norm = true;
  bool log = false;
  double* logits = nullptr;          // [tiles, group, 256], NaN: not counted, or not finite
  float* norms = nullptr;            // [tiles, 256] |value|
  SoftMaxTotal* totals = nullptr;    // [rows, group]
  const ScoreRow* scores = nullptr;  // [rows], out
};

// A block per tile: reads every key (and value) once from memory.
cudaError_t LaunchExpectedLogits(const ExpectedAttentionParams& params, cudaStream_t stream);
// A block per row.
cudaError_t LaunchExpectedAttention(const ExpectedAttentionParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_EXPECTED_ATTENTION_H_
