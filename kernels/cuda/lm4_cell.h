// Finding the lm4 code of a value by one look-up instead of 15 comparisons: the value's cell names
// the one boundary that may lie inside it, and how many lie below. Codes and cells go by the byte
// offsets of their table entries, which spares every look-up a shift.
#ifndef KVERN_KERNELS_CUDA_LM4_CELL_H_
#define KVERN_KERNELS_CUDA_LM4_CELL_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kernels/base/dtype.h"
#include "kernels/base/host_device.h"

namespace kvern::cuda {

// Cells are 0.25 wide, neighbouring boundaries at least 0.257 apart. They reach further than the
// values of a rotated head of 128, none of which is longer than the row: sqrt(128) < 15.
inline constexpr int kLm4Cells = 128;
inline constexpr float kLm4CellsPerUnit = 4.0f;
inline constexpr float kLm4Reach = 15.0f;
inline constexpr float kLm4Never = std::numeric_limits<float>::infinity();  // above no value

// `cells`: a word is a boundary, whose low mantissa bits are 0, with 4 times the count of
// boundaries below the cell in its low byte. A level has the offset 4 * code.
struct Lm4Tables {
  uint32_t cells[kLm4Cells];
  float levels[16];
};
inline constexpr uint32_t kLm4OffsetMask = 0xFF;  // a byte, which is cheap to pack

// Cell of a value: the whole part of its place, once rounded to quarters.
inline constexpr float Lm4CellLow(int cell) {
  return (static_cast<float>(cell - kLm4Cells / 2) - 0.125f) / kLm4CellsPerUnit;
}

template <class T>
KVERN_HD inline T AtOffset(const T* table, uint32_t bytes) {
  return *reinterpret_cast<const T*>(reinterpret_cast<const std::byte*>(table) + bytes);
}

// 4 times the number of boundaries strictly below the value, |value| <= kLm4Reach.
KVERN_HD inline uint32_t Lm4OffsetOf(float value, const uint32_t* cells) {
  // Adding 1.5 * 2^21 rounds to quarters, whose count the low bits then show.
  constexpr float kQuarters = 0x1.8p21f + kLm4Cells / 2;
  const uint32_t quarters = internal::BitsFromFloat(fmaf(value, kLm4CellsPerUnit, kQuarters));
  uint32_t word = AtOffset(cells, quarters & (kLm4Cells - 1) << 2);
  if (value > internal::FloatFromBits(word & ~kLm4OffsetMask)) word += 4;
  return word & kLm4OffsetMask;
}
KVERN_HD inline float WithinLm4Reach(float value) {
  return fminf(fmaxf(value, -kLm4Reach), kLm4Reach);
}

// kLm4Shifts of kernels/base/coding.h, in closed form.
KVERN_HD constexpr uint32_t Lm4Shift(uint32_t i) { return (i & 1) * 16 + (i >> 1) * 4; }

// A word of eight codes as level offsets: those of coordinates 2 j and 2 j + 1, whose nibbles stand
// 16 bits apart, in the halves of pairs[j].
struct Lm4Offsets {
  uint32_t pairs[4] = {};

  static KVERN_HD constexpr Lm4Offsets Of(uint32_t word) {
    constexpr uint32_t kOffsets = 0x003C003Cu;
    return {
        {word << 2 & kOffsets, word >> 2 & kOffsets, word >> 6 & kOffsets, word >> 10 & kOffsets}};
  }
  KVERN_HD constexpr uint32_t Word() const {
    return pairs[0] >> 2 | pairs[1] << 2 | pairs[2] << 6 | pairs[3] << 10;
  }
  KVERN_HD constexpr void Add(int i, uint32_t offset) {
    pairs[i / 2] += i % 2 == 0 ? offset : offset << 16;
  }
  KVERN_HD constexpr uint32_t At(int i) const {
    return i % 2 == 0 ? pairs[i / 2] & 0xFFFF : pairs[i / 2] >> 16;
  }
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_LM4_CELL_H_
