// A vector leaves a cell's list when one other is nearer in all of the cell, by a margin that the
// rounding of distances cannot bridge.
#include "kernels/cpu/sfv_cells.h"

#include <algorithm>
#include <limits>
#include <map>

namespace kvern::cpu {
namespace {

// A distance is at most 4 roundings of numbers below 256 away from what it should be; a coordinate
// may be counted to the neighbour of the interval that it is at the edge of.
constexpr double kMargin = 1e-3;

struct Box {
  double low[kSfvCoords];
  double high[kSfvCoords];
};
Box BoxOf(int32_t cell) {
  Box box;
  for (int j = 0; j < kSfvCoords; ++j) {
    const int interval = cell >> (kSfvIntervalBits * j) & ((1 << kSfvIntervalBits) - 1);
    const bool last = interval + 1 == 1 << kSfvIntervalBits;
    box.low[j] = interval * double{kSfvIntervalWidth} - kMargin;
    box.high[j] = last ? kSfvReach : (interval + 1) * double{kSfvIntervalWidth} + kMargin;
  }
  return box;
}

// The most by which `a` can be farther than `b` from a point of the box.
double LargestLead(const SfvVector& a, const SfvVector& b, const Box& box) {
  double lead = double{a.half_square} - double{b.half_square};
  for (int j = 0; j < kSfvCoords; ++j) {
    const double slope = double{b.magnitude[j]} - double{a.magnitude[j]};
    lead += slope * (slope > 0 ? box.high[j] : box.low[j]);
  }
  return lead;
}
bool IsAlwaysNearer(int32_t a, int32_t b, const Box& box) {
  return LargestLead(kSfv3Vectors[a], kSfv3Vectors[b], box) < -kMargin;
}

int32_t NearestToMiddle(const Box& box) {
  float middle[kSfvCoords];
  for (int j = 0; j < kSfvCoords; ++j) {
    middle[j] = static_cast<float>((box.low[j] + std::min(box.high[j], 3.0)) / 2);
  }
  int32_t best = 0;
  for (int32_t n = 1; n < std::ssize(kSfv3Vectors); ++n) {
    if (SfvDistance(kSfv3Vectors[n], middle) < SfvDistance(kSfv3Vectors[best], middle)) best = n;
  }
  return best;
}

// Ascending. The one in the middle beats most of the others; the rest are compared with each other.
std::vector<int32_t> Contenders(const Box& box) {
  const int32_t middle = NearestToMiddle(box);
  std::vector<int32_t> left;
  for (int32_t n = 0; n < std::ssize(kSfv3Vectors); ++n) {
    if (!IsAlwaysNearer(middle, n, box)) left.push_back(n);
  }
  std::vector<int32_t> contenders;
  for (const int32_t n : left) {
    const bool beaten = std::any_of(left.begin(), left.end(),
                                    [&](int32_t other) { return IsAlwaysNearer(other, n, box); });
    if (!beaten) contenders.push_back(n);
  }
  return contenders;
}

}  // namespace

const SfvCells& SfvCells::Of3() {
  static const SfvCells cells;
  return cells;
}

SfvCells::SfvCells() {
  std::map<std::vector<int32_t>, uint16_t> known;
  for (int32_t cell = 0; cell < kSfvCellCount; ++cell) {
    const std::vector<int32_t> numbers = Contenders(BoxOf(cell));
    const bool more = std::ssize(numbers) > kSfvSlots;
    const auto entry = static_cast<uint16_t>(records_.size() | (more ? kMore : 0));
    const auto [at, is_new] = known.emplace(numbers, entry);
    if (is_new) Append(numbers);
    entries_[cell] = at->second;
  }
}

void SfvCells::Append(const std::vector<int32_t>& numbers) {
  const int64_t size = std::ssize(numbers);
  for (int64_t first = 0; first < size; first += kSfvSlots) {
    counts_.push_back(static_cast<uint8_t>((size - first + kSfvSlots - 1) / kSfvSlots));
    SfvRecord& record = records_.emplace_back();
    for (int64_t slot = 0; slot < kSfvSlots; ++slot) {
      const bool used = first + slot < size;
      const int32_t number = used ? numbers[first + slot] : 0;
      const uint64_t halves = kSfv3Halves[number];
      numbers_.push_back(static_cast<uint8_t>(number));
      record.half_square[slot] =
          used ? kSfv3Vectors[number].half_square : std::numeric_limits<float>::infinity();
      for (int j = 0; j < kSfvCoords; ++j) {
        record.magnitude[j][slot] = static_cast<uint16_t>(halves >> (16 * j));
      }
    }
  }
}

}  // namespace kvern::cpu
