// The reference key of every row, and what it adds to each dot product. Keys are centred before f32
// dot products (ruling 6); <vector, reference key> comes back in f64. As ref/centred_keys.h.
#ifndef KVERN_KERNELS_CUDA_CENTRE_KEYS_H_
#define KVERN_KERNELS_CUDA_CENTRE_KEYS_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

// Vectors of one sequence that keys are multiplied with, dense [layers, q_heads, per_head, dims].
struct QueryVectors {
  const float* data = nullptr;
  int32_t per_head = 0;  // at most CentreKeysParams::max_per_head
};

struct CentreKeysParams {
  Rows rows;
  const MaskRow* candidates = nullptr;    // [rows]; null: every token is one
  const QueryVectors* vectors = nullptr;  // [sequences]
  int32_t q_heads = 0;
  int32_t group = 0;  // query heads per kv_head
  int32_t max_per_head = 0;
  int32_t dims = 0;             // leading coordinates that count, at most head_dim
  float* reference = nullptr;   // out [rows, head_dim]: first finite key of the candidates, else of
                                // all tokens, else 0
  double* constants = nullptr;  // out [rows, group, max_per_head]: <vector, reference>, f64 lanes
};

// One launch, a block per row.
cudaError_t LaunchCentreKeys(const CentreKeysParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_CENTRE_KEYS_H_
