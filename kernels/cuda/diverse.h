// The launch of Diverse (alpha): lazy greedy, exact, a block per selection problem.
#ifndef KVERN_KERNELS_CUDA_DIVERSE_H_
#define KVERN_KERNELS_CUDA_DIVERSE_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

// A row of the problem's group: where its values are.
struct DiverseRow {
  int32_t kv = 0;
  int32_t head = 0;
};

struct DiverseProblem {
  const int32_t* tokens = nullptr;  // [candidates] ascending
  int32_t candidates = 0;
  int32_t picks = 0;
  const DiverseRow* rows = nullptr;  // [row_count]
  int32_t row_count = 0;
  ScoreRow scores;              // of the group's first row
  int32_t* order = nullptr;     // out [picks]: tokens as they were picked
  int32_t* chosen = nullptr;    // scratch [picks]: their candidates
  float* gains = nullptr;       // scratch [candidates]: scaled scores
  float* redundancy = nullptr;  // scratch [candidates]
  int32_t* seen = nullptr;      // scratch [candidates]: picks in the redundancy; -1: picked
  float* inverse = nullptr;     // scratch [candidates, row_count]: 1 / |value|
};

struct DiverseParams {
  Layers values;
  const DiverseProblem* problems = nullptr;
  int64_t problem_count = 0;
  float lambda = 0.5f;
  bool to_unit = false;     // scores are scaled to [0, 1] first
  bool recent_wins = true;  // between equal gains; else the oldest
  const int32_t* stop = nullptr;
};

cudaError_t LaunchDiverse(const DiverseParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_DIVERSE_H_
