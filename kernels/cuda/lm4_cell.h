// Finding the lm4 code of a value by one look-up instead of 15 comparisons: the value's cell names
// the one boundary that may lie inside it, and how many lie below.
#ifndef KVERN_KERNELS_CUDA_LM4_CELL_H_
#define KVERN_KERNELS_CUDA_LM4_CELL_H_

#include <cmath>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/host_device.h"
#include "kernels/cuda/coded_row.h"

namespace kvern::cuda {

// Cells are 5 / 31 wide and cover -2.5..2.5; neighbouring boundaries are at least 0.25 apart and
// all of them lie inside. The first and the last cell go on to infinity; NaN is in the first.
inline constexpr float kLm4CellScale = 0.2f;
inline constexpr uint32_t kLm4CodeMask = 15;
inline constexpr float kLm4Never = 0x1p127f;  // a boundary that no value is above
// Adding it rounds a float of magnitude below 2^22 to an integer, which the low bits then show.
inline constexpr float kRoundingMagic = 0x1.8p23f;

// The least value of the cell, but for rounding.
inline constexpr float Lm4CellLow(int cell) {
  const float centre = static_cast<float>(cell) / (kLm4Cells - 1);
  return (centre - 0.5f - 0.5f / (kLm4Cells - 1)) / kLm4CellScale;
}

KVERN_HD inline uint32_t Lm4CodeOf(float value, const uint32_t* cells) {
  const float place = fminf(fmaxf(fmaf(value, kLm4CellScale, 0.5f), 0.0f), 1.0f);
  const float rounded = fmaf(place, static_cast<float>(kLm4Cells - 1), kRoundingMagic);
  const uint32_t word = cells[internal::BitsFromFloat(rounded) & (kLm4Cells - 1)];
  const float boundary = internal::FloatFromBits(word & ~kLm4CodeMask);
  return (word & kLm4CodeMask) + (value > boundary ? 1 : 0);
}

// kLm4Shifts of kernels/base/coding.h, in closed form.
KVERN_HD constexpr uint32_t Lm4Shift(uint32_t i) { return (i & 1) * 16 + (i >> 1) * 4; }

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_LM4_CELL_H_
