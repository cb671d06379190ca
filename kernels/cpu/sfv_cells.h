// Which vectors of sfv3 can be nearest to a block: a grid over magnitudes has for each cell the few
// that win somewhere in it, so that a search looks at about 8 of 256.
#ifndef KVERN_KERNELS_CPU_SFV_CELLS_H_
#define KVERN_KERNELS_CPU_SFV_CELLS_H_

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/base/sfv_rules.h"

namespace kvern::cpu {

// Each coordinate is in one of 8 intervals [n w, (n + 1) w), the last of which ends at kSfvReach.
// The width is what makes cells with more than one record rare (0.5 % of normal coordinates).
inline constexpr int kSfvIntervalBits = 3;
inline constexpr float kSfvIntervals = 1 << kSfvIntervalBits;
inline constexpr float kSfvIntervalWidth = 0.3f;
inline constexpr float kSfvReach =
    12.0f;  // no coordinate of a row of 128 at unit variance is larger
inline constexpr int kSfvCellCount = 1 << (kSfvIntervalBits * kSfvCoords);

inline constexpr int kSfvSlots = 16;
// Up to 16 vectors in ascending order; unused slots are infinitely far from everything.
struct alignas(64) SfvRecord {
  float half_square[kSfvSlots];
  uint16_t magnitude[kSfvCoords][kSfvSlots];  // f16, which holds them exactly
};

// The records of a cell lie one after the other.
class SfvCells {
 public:
  static constexpr uint16_t kMore = 0x8000;  // of an entry: the record is not the cell's only one

  // Those of sfv3; the first call takes some 35 ms to find them. Thread-safe.
  static const SfvCells& Of3();

  // Number of the first record of a cell, whose bits 3 j .. 3 j + 2 are the interval of coordinate
  // j, with or without kMore.
  uint16_t Entry(int32_t cell) const { return entries_[cell]; }
  const SfvRecord& Record(int32_t record) const { return records_[record]; }
  // Numbers [kSfvSlots] of a record's vectors.
  const uint8_t* Numbers(int32_t record) const { return numbers_.data() + record * kSfvSlots; }
  int32_t RecordsFrom(int32_t record) const { return counts_[record]; }

 private:
  SfvCells();
  void Append(const std::vector<int32_t>& numbers);

  std::array<uint16_t, kSfvCellCount> entries_ = {};
  std::vector<SfvRecord> records_;
  std::vector<uint8_t> numbers_;  // [records, kSfvSlots]
  std::vector<uint8_t> counts_;   // [records]: how many there are from here on in its list
};

// A vector's magnitudes as four f16, coordinate 0 lowest: `word` has them in steps of 1/64.
constexpr uint64_t SfvHalves(uint32_t word) {
  uint64_t halves = 0;
  for (int j = 0; j < kSfvCoords; ++j) {
    const uint32_t steps = word >> (8 * j) & 0xFFu;
    if (steps == 0) continue;
    const int exponent = std::bit_width(steps) - 1;
    const uint64_t half =
        static_cast<uint64_t>(exponent + 15 - 6) << 10 | (steps << (10 - exponent) & 0x3FFu);
    halves |= half << (16 * j);
  }
  return halves;
}
template <size_t kSize>
constexpr std::array<uint64_t, kSize> SfvHalvesOf(const uint32_t (&words)[kSize]) {
  std::array<uint64_t, kSize> halves = {};
  for (size_t n = 0; n < kSize; ++n) halves[n] = SfvHalves(words[n]);
  return halves;
}
inline constexpr std::array<uint64_t, 256> kSfv3Halves = SfvHalvesOf(kSfv3Words);
inline constexpr std::array<uint64_t, 16> kSfv2Halves = SfvHalvesOf(kSfv2Words);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_SFV_CELLS_H_
