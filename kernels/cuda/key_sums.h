// Weighted sums of un-rotated keys over each 256-token tile, per coordinate: the first half of a
// mean over tokens. Tiles are added in order by whoever reads them.
#ifndef KVERN_KERNELS_CUDA_KEY_SUMS_H_
#define KVERN_KERNELS_CUDA_KEY_SUMS_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

enum class KeyWeight : uint8_t {
  kOne,          // of keys that are finite as they lie
  kInverseNorm,  // 1 / max(|key|, 1e-12), f64, of keys that are finite when turned back
};

struct KeySumsParams {
  Rows rows;
  const DeviceRotation* rotations = nullptr;  // [sequences]
  const MaskRow* counted = nullptr;           // [rows]
  KeyWeight weight = KeyWeight::kOne;
  double* sums = nullptr;     // out [tiles, head_dim]
  int32_t* counts = nullptr;  // out [tiles] keys in the sum
  double* norms = nullptr;  // out [tiles, 256] |key|, NaN where it is not finite; kInverseNorm only
};

// One launch, a block per tile.
cudaError_t LaunchKeySums(const KeySumsParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_KEY_SUMS_H_
