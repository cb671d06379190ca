// The launch of Gather.
#ifndef KVERN_KERNELS_CUDA_GATHER_H_
#define KVERN_KERNELS_CUDA_GATHER_H_

#include <cstdint>

#include "kernels/cuda/problem.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

// One (problem, layer, kv_head): slot s of `out` gets token keep[s] of `in`.
struct MoveRow {
  int32_t kv = 0;  // index of both its KvLayers
  int32_t layer = 0;
  int32_t head = 0;
  int32_t problem = 0;  // of its rotations
  const int32_t* keep = nullptr;
};

// Slots [first, end) of one row: what one block moves, in order.
struct MoveRun {
  int32_t row = 0;
  int32_t first = 0;
  int32_t end = 0;
};

struct GatherParams {
  Layers in;
  Layers out;
  const MoveRow* rows = nullptr;
  const MoveRun* runs = nullptr;
  int64_t run_count = 0;
  int32_t chunk_rows = 0;                // rows that a block holds at a time
  const DeviceRotation* from = nullptr;  // [problems]; cosine null: bytes move as they are
  const DeviceRotation* to = nullptr;    // [problems], rows of the output slots
};

// A block per run. Bytes of one row: at most kMoveChunkBytes.
inline constexpr int32_t kMoveChunkBytes = 16384;
cudaError_t LaunchGather(const GatherParams& params, cudaStream_t stream);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_GATHER_H_
