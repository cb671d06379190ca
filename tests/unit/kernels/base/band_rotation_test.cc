// Rows turn by their angles, in both layouts, and no other coordinate moves.
#include "kernels/base/band_rotation.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/host_kv.h"

namespace kvern {
namespace {

TEST(RotateRow, TurnsEachBandByItsAngle) {
  for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
    const RotationTable table = support::RotationOf(layout, /*bands=*/3, /*tokens=*/9);
    std::vector<float> x = support::RandomFloats(8, /*seed=*/5);
    const std::vector<float> before = x;
    const RotationRow row = RowOf(table, 7);
    RotateRow(row, x.data());
    for (int64_t band = 0; band < 3; ++band) {
      const int64_t re = layout == RopeLayout::kHalf ? band : 2 * band;
      const int64_t im = layout == RopeLayout::kHalf ? band + 3 : 2 * band + 1;
      const double phase = 7 * std::pow(1e4, -double{1} * band / 3);
      EXPECT_NEAR(x[re], before[re] * std::cos(phase) - before[im] * std::sin(phase), 1e-6);
      EXPECT_NEAR(x[im], before[re] * std::sin(phase) + before[im] * std::cos(phase), 1e-6);
    }
    EXPECT_EQ(x[6], before[6]);
    EXPECT_EQ(x[7], before[7]);
  }
}

TEST(UnrotateRow, UndoesRotateRow) {
  const RotationTable table = support::RotationOf(RopeLayout::kHalf, /*bands=*/32, /*tokens=*/1000);
  std::vector<float> x = support::RandomFloats(64, /*seed=*/6);
  const std::vector<float> before = x;
  RotateRow(RowOf(table, 999), x.data());
  UnrotateRow(RowOf(table, 999), x.data());
  for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], before[i], 1e-6);
}

TEST(SameAngles, ComparesBits) {
  const RotationTable table = support::RotationOf(RopeLayout::kHalf, /*bands=*/4, /*tokens=*/3);
  const RotationTable other = support::RotationOf(RopeLayout::kHalf, /*bands=*/4, /*tokens=*/3);
  EXPECT_TRUE(SameAngles(RowOf(table, 2), RowOf(other, 2)));
  EXPECT_FALSE(SameAngles(RowOf(table, 2), RowOf(other, 1)));
}

}  // namespace
}  // namespace kvern
