// What a launch works on: plain structs that the host fills, uploads in one piece, and kernels
// read. Rows are (sequence, layer, kv_head) triples of the whole cohort; tiles are runs of 256
// tokens of one row, so that ragged sequences share one launch.
#ifndef KVERN_KERNELS_CUDA_PROBLEM_H_
#define KVERN_KERNELS_CUDA_PROBLEM_H_

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/host_device.h"
#include "kernels/base/rotation.h"

namespace kvern::cuda {

// floor(n / divisor) for 0 <= n < 2^31 by one multiplication: integer division is a subroutine on a
// GPU (Granlund, Montgomery 1994).
struct FastDivisor {
  uint32_t divisor = 1;
  uint32_t multiplier = 0;  // 0: a power of two
  uint32_t shift = 0;

  static FastDivisor Of(uint32_t divisor) {
    FastDivisor fast;
    fast.divisor = divisor;
    uint32_t log2 = 0;
    while ((uint64_t{1} << log2) < divisor) ++log2;
    fast.shift = log2;
    if ((uint64_t{1} << log2) == divisor) return fast;
    fast.multiplier = static_cast<uint32_t>(
        (uint64_t{1} << 32) * ((uint64_t{1} << log2) - divisor) / divisor + 1);
    return fast;
  }
  KVERN_HD uint32_t Divide(uint32_t n) const {
    if (multiplier == 0) return n >> shift;
    const uint32_t high = static_cast<uint32_t>((uint64_t{n} * multiplier) >> 32);
    return (high + n) >> shift;  // no overflow below 2^31
  }
};

// A KvRef whose pointers are device memory: rows of one layer of one sequence.
struct KvLayer {
  std::byte* base = nullptr;
  int64_t block_stride = 0;  // bytes, all four
  int64_t head_stride = 0;
  int64_t token_stride = 0;
  int64_t dim_stride = 0;
  const uint32_t* block_ids = nullptr;  // null: block b is id b
  FastDivisor block_tokens;
  int32_t tokens = 0;

  KVERN_HD std::byte* Address(int32_t head, int32_t token) const {
    const uint32_t block = block_tokens.Divide(static_cast<uint32_t>(token));
    const uint32_t id = block_ids == nullptr ? block : block_ids[block];
    const uint32_t slot = static_cast<uint32_t>(token) - block * block_tokens.divisor;
    return base + int64_t{id} * block_stride + head * head_stride + int64_t{slot} * token_stride;
  }
};

// One (sequence, layer, kv_head).
struct HeadRow {
  int32_t kv = 0;     // index of its KvLayer
  int32_t head = 0;   // kv_head
  int32_t layer = 0;  // within the sequence
  int32_t sequence = 0;
  int32_t tokens = 0;      // that it holds and the score row has room for
  int32_t row_tokens = 0;  // of the score row: those beyond `tokens` have no score
  int64_t first_tile = 0;  // tiles of the rows before it: index of its first partial result
};

inline constexpr int32_t kTile = 256;  // tokens; = kTileTokens of kernels/base/lanes.h

struct Tile {
  uint32_t row = 0;
  uint32_t first = 0;  // token
};

struct ScoreRow {
  float* data = nullptr;
  int64_t stride = 1;  // elements between tokens
};
struct MaskRow {
  const uint8_t* data = nullptr;  // dense, one byte per token
};

// RotationTable on the device, per sequence.
struct DeviceRotation {
  RopeLayout layout = RopeLayout::kHalf;
  int32_t bands = 0;
  const float* cosine = nullptr;  // [rows, bands]
  const float* sine = nullptr;    // [rows, bands]
  const int32_t* row_of_slot = nullptr;
  int64_t layer_stride = 0;
  int64_t head_stride = 0;

  KVERN_HD int32_t Row(int64_t layer, int64_t head, int64_t token) const {
    return row_of_slot[layer * layer_stride + head * head_stride + token];
  }
};

// How a launch reads rows of head_dim: by 16-byte vectors where every row of the cohort is
// contiguous and aligned to 16 bytes, else element by element (column-major tiles).
enum class RowAccess : uint8_t { kVector, kElements };

struct RowShape {
  DType dtype = DType::kBF16;
  RowAccess access = RowAccess::kVector;
  int32_t head_dim = 0;
};

// Layers of a cohort, [sequence, layer].
struct Layers {
  const KvLayer* layers = nullptr;
  int64_t count = 0;
  RowShape shape;
};

// All rows of a cohort, and the tiles they are cut into.
struct Rows {
  Layers keys;  // or whatever rows the op reads first
  const HeadRow* rows = nullptr;
  int64_t count = 0;
  const Tile* tiles = nullptr;  // in row order
  int64_t tile_count = 0;
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_PROBLEM_H_
