// A search among the vectors of a cell finds what a search among all of them finds.
#include "kernels/cpu/sfv_cells.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace kvern::cpu {
namespace {

struct Point {
  float x[kSfvCoords];
};

int32_t NearestOfAll(const Point& point) {
  int32_t best = 0;
  for (int32_t n = 1; n < std::ssize(kSfv3Vectors); ++n) {
    if (SfvDistance(kSfv3Vectors[n], point.x) < SfvDistance(kSfv3Vectors[best], point.x)) best = n;
  }
  return best;
}

// As kernels number cells: a product and a truncation, both in f32.
int32_t CellOf(const Point& point) {
  int32_t cell = 0;
  for (int j = 0; j < kSfvCoords; ++j) {
    const float interval = std::min(point.x[j] * (1.0f / kSfvIntervalWidth), kSfvIntervals - 1);
    cell |= static_cast<int32_t>(interval) << (kSfvIntervalBits * j);
  }
  return cell;
}

int32_t NearestOfCell(const Point& point) {
  const SfvCells& cells = SfvCells::Of3();
  const uint16_t entry = cells.Entry(CellOf(point));
  const int32_t first = entry & (SfvCells::kMore - 1);
  const int32_t count = cells.RecordsFrom(first);
  EXPECT_EQ(count > 1, (entry & SfvCells::kMore) != 0);
  int32_t best = -1;
  float least = std::numeric_limits<float>::infinity();
  for (int32_t record = first; record < first + count; ++record) {
    for (int slot = 0; slot < kSfvSlots; ++slot) {
      if (std::isinf(cells.Record(record).half_square[slot])) continue;
      const int32_t number = cells.Numbers(record)[slot];
      const float distance = SfvDistance(kSfv3Vectors[number], point.x);
      if (!(distance < least)) continue;
      least = distance;
      best = number;
    }
  }
  return best;
}

void ExpectTheSame(const Point& point) {
  ASSERT_EQ(NearestOfCell(point), NearestOfAll(point))
      << point.x[0] << " " << point.x[1] << " " << point.x[2] << " " << point.x[3];
}

TEST(SfvCells, HaveTheNearestVectorOfEveryPoint) {
  std::mt19937_64 random(91);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(0.0f, 3.5f);
  for (int i = 0; i < 60000; ++i) {
    Point point;
    for (float& x : point.x) x = i % 2 == 0 ? std::fabs(normal(random)) : uniform(random);
    ExpectTheSame(point);
  }
}

TEST(SfvCells, HaveTheNearestVectorWhereCellsMeet) {
  std::mt19937_64 random(92);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int i = 0; i < 30000; ++i) {
    Point point;
    for (float& x : point.x) {
      const float edge = kSfvIntervalWidth * static_cast<float>(random() % 8);
      const float sides[] = {edge, std::nextafter(edge, kInfinity), std::nextafter(edge, 0.0f)};
      x = sides[random() % 3];
    }
    ExpectTheSame(point);
  }
}

TEST(SfvCells, HaveTheNearestVectorOfTheLongestCoordinates) {
  for (int j = 0; j < kSfvCoords; ++j) {
    for (float far = 2.0f; far < kSfvReach; far += 0.01f) {
      Point point = {};
      point.x[j] = far;
      ExpectTheSame(point);
      point.x[(j + 1) % kSfvCoords] = far / 2;
      ExpectTheSame(point);
    }
  }
}

TEST(SfvCells, HoldVectorsExactlyAsHalves) {
  const SfvCells& cells = SfvCells::Of3();
  for (int32_t cell = 0; cell < kSfvCellCount; cell += 17) {
    const int32_t record = cells.Entry(cell) & (SfvCells::kMore - 1);
    for (int slot = 0; slot < kSfvSlots; ++slot) {
      const SfvVector& vector = kSfv3Vectors[cells.Numbers(record)[slot]];
      for (int j = 0; j < kSfvCoords; ++j) {
        ASSERT_EQ(ToFloat(Float16{cells.Record(record).magnitude[j][slot]}), vector.magnitude[j]);
      }
    }
  }
}

}  // namespace
}  // namespace kvern::cpu
