// The launches of TriAttention after the reference keys: raw scores of every query head, then their
// spread, z-scores and the reduction over the group.
#ifndef KVERN_KERNELS_CUDA_TRI_ATTENTION_H_
#define KVERN_KERNELS_CUDA_TRI_ATTENTION_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

// What keys of one sequence are multiplied with.
struct TriAttentionQueries {
  const float* u = nullptr;  // [layers, q_heads, columns, 2 * bands]
  const float* w = nullptr;  // [layers, q_heads, bands]
};

struct TileSpread {
  double sum;     // of the finite candidates' raw scores, in token order
  int32_t count;  // of them
};

struct RawSpread {
  double mean;
  double deviation;
};

struct TriAttentionParams {
  Rows rows;
  const TriAttentionQueries* queries = nullptr;  // [sequences]
  const MaskRow* candidates = nullptr;           // [rows]
  RopeLayout layout = RopeLayout::kHalf;
  int32_t bands = 0;
  int32_t q_heads = 0;
  int32_t group = 0;  // query heads per kv_head
  int32_t columns = 1;
  bool zscore = true;
  bool shared_vectors = false;         // set by the launch: u and w wait in shared memory
  bool mean_of_group = false;          // else the maximum
  const float* reference = nullptr;    // [rows, head_dim] of LaunchCentreKeys
  const double* constants = nullptr;   // [rows, group, columns]
  double* raw = nullptr;               // [tiles, group, 256], NaN where there is no score
  TileSpread* tile_spreads = nullptr;  // [tiles, group]
  RawSpread* spreads = nullptr;        // [rows, group]
  const ScoreRow* scores = nullptr;    // [rows], out
};

// A block per tile: reads every key once.
cudaError_t LaunchRawScores(const TriAttentionParams& params, cudaStream_t stream);
// A block per row.
cudaError_t LaunchTriAttention(const TriAttentionParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_TRI_ATTENTION_H_
