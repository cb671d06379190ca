// The launches of KeyDiff after the sums over tiles: the mean direction of every row, and how far
// each key turns away from it.
#ifndef KVERN_KERNELS_CUDA_KEY_DIFF_H_
#define KVERN_KERNELS_CUDA_KEY_DIFF_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

struct KeyDiffParams {
  Rows rows;
  const DeviceRotation* rotations = nullptr;  // [sequences]
  const double* sums = nullptr;               // [tiles, head_dim] of LaunchKeySums
  const int32_t* counts = nullptr;            // [tiles]
  const double* norms = nullptr;              // [tiles, 256] of LaunchKeySums
  double* anchors = nullptr;                  // [rows, head_dim] mean unit key; 0 without any key
  double* anchor_norms = nullptr;             // [rows]
  const ScoreRow* scores = nullptr;           // [rows], out
};

// Writes anchors and their norms, a block per row.
cudaError_t LaunchAnchors(const KeyDiffParams& params, cudaStream_t stream);
// Reads them, a block per tile.
cudaError_t LaunchKeyDiff(const KeyDiffParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_KEY_DIFF_H_
