// Rotary position embedding: the description a model gives, and the tables kernels read.
#ifndef KVERN_KERNELS_BASE_ROTATION_H_
#define KVERN_KERNELS_BASE_ROTATION_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace kvern {

// Which two coordinates of a head form band f: (f, f + bands) or (2f, 2f + 1).
enum class RopeLayout : uint8_t { kHalf = 0, kInterleaved = 1 };

// cos and sin of position * inv_freq, f64 phases rounded once to f32, for the distinct positions of
// one sequence. Coordinates beyond 2 * bands are not rotated (partial rotary).
struct RotationTable {
  RopeLayout layout = RopeLayout::kHalf;
  int32_t bands = 0;                   // rotated dims / 2
  std::span<const float> cosine;       // [rows, bands]
  std::span<const float> sine;         // [rows, bands]
  std::shared_ptr<const void> angles;  // owns both
  // Row of each slot: [layers, kv_heads, tokens] with strides below; stride 0 shares a row.
  std::vector<int32_t> row_of_slot;
  int64_t layer_stride = 0;
  int64_t head_stride = 0;

  int64_t Row(int64_t layer, int64_t head, int64_t token) const {
    return row_of_slot[layer * layer_stride + head * head_stride + token];
  }
};

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_ROTATION_H_
