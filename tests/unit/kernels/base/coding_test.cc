// Scales are total, and the nibble order is the documented one.
#include "kernels/base/coding.h"

#include "gtest/gtest.h"

namespace kvern {
namespace {

TEST(RoundScale, StopsAtTheLargestF16) {
  EXPECT_EQ(RoundScale(1e30f).value, 65504.0f);
  EXPECT_EQ(RoundScale(65530.0f).value, 65504.0f);
}

TEST(RoundScale, UnderflowsToZeroWhichHasNoInverse) {
  const CodeScale scale = I8Scale(1e-8f);
  EXPECT_EQ(scale.value, 0.0f);
  EXPECT_EQ(InverseScale(scale.value), 0.0f);
}

TEST(Lm4Shifts, PairEvenAndOddCoordinatesForOneMask) {
  // Shifted by 4 i, the word masked by 0x000F000F is the pair (2 i, 2 i + 1).
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(kLm4Shifts[2 * i], 4 * i);
    EXPECT_EQ(kLm4Shifts[2 * i + 1], 4 * i + 16);
  }
}

TEST(PlanesOf, StartsEachPlaneOn16Bytes) {
  for (const int64_t head_dim : {8, 24, 64, 80, 96, 128, 256}) {
    for (const int64_t tokens : {1, 3, 16, 32, 63, 64}) {
      for (const CodecId codec : {CodecId::kI8t, CodecId::kLm4}) {
        PackedRow row = {};
        row.codec = static_cast<int64_t>(codec);
        row.tokens = tokens;
        row.byte_offset = 256;
        const PackedPlanes planes = PlanesOf(row, DType::kBF16, head_dim);
        EXPECT_EQ(planes.codes, 256);
        EXPECT_EQ(planes.scales % kPlaneAlign, 0);
        EXPECT_GE(planes.scales, planes.codes + tokens * planes.code_row_bytes);
        EXPECT_EQ(planes.end - planes.codes,
                  BlockBytes(codec, DType::kBF16, tokens, head_dim));
      }
    }
  }
}

TEST(FiniteMean, IsZeroForWhatIsNotANumber) {
  EXPECT_EQ(FiniteMean(Float16{0x7C00}), 0.0f);
  EXPECT_EQ(FiniteMean(Float16{0x7E01}), 0.0f);
  EXPECT_EQ(FiniteMean(Float16{0x3C00}), 1.0f);
}

}  // namespace
}  // namespace kvern
