// Scales are total, and the nibble order is the documented one.
#include "kernels/base/coding.h"

#include <limits>

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

TEST(RoundedMean, IsAFiniteF16OrTheOneNaN) {
  EXPECT_EQ(RoundedMean(3.0, 2).bits, FromFloat<Float16>(1.5f).bits);
  EXPECT_EQ(RoundedMean(0.0, 0).bits, 0);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(ToFloat(RoundedMean(kInfinity, 2)), 65504.0f);
  EXPECT_EQ(ToFloat(RoundedMean(-1e300, 2)), -65504.0f);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(RoundedMean(nan, 1).bits, 0x7E00);
  EXPECT_EQ(RoundedMean(-nan, 1).bits, 0x7E00);
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
      for (const CodecId codec : {CodecId::kI8t, CodecId::kFp8t, CodecId::kI4t, CodecId::kLm4,
                                  CodecId::kSfv2, CodecId::kSfv3}) {
        PackedRow row = {};
        row.codec = static_cast<int64_t>(codec);
        row.tokens = tokens;
        row.byte_offset = 256;
        const KvRef ref = DenseKvRef(DType::kBF16, nullptr, 1, tokens, head_dim);
        const PackedPlanes planes = PlanesOf(row, ref);
        EXPECT_EQ(planes.codes, 256);
        EXPECT_EQ(planes.scales % kPlaneAlign, 0);
        EXPECT_GE(planes.scales, planes.codes + tokens * planes.code_row_bytes);
        const int64_t end = 256 + BlockBytes(codec, DType::kBF16, tokens, head_dim);
        EXPECT_GE(end, planes.scales + 2 * tokens);
        EXPECT_TRUE(IsSound(row, {&ref, 1}, end));
        EXPECT_FALSE(IsSound(row, {&ref, 1}, end - 1));
      }
    }
  }
}

TEST(IsSound, RefusesRowsThatNameWhatIsNotThere) {
  const KvRef ref = DenseKvRef(DType::kBF16, nullptr, /*kv_heads=*/2, /*tokens=*/64, 64);
  constexpr int64_t kBytes = 1 << 20;
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  PackedRow good = {};
  good.codec = static_cast<int64_t>(CodecId::kLm4);
  good.tokens = 64;
  EXPECT_TRUE(IsSound(good, {&ref, 1}, kBytes));
  const auto sound = [&](int64_t PackedRow::*field, int64_t value) {
    PackedRow row = good;
    row.*field = value;
    return IsSound(row, {&ref, 1}, kBytes);
  };
  for (const int64_t value : {int64_t{-1}, kHuge, -kHuge - 1}) {
    EXPECT_FALSE(sound(&PackedRow::layer, value));
    EXPECT_FALSE(sound(&PackedRow::kv_head, value));
    EXPECT_FALSE(sound(&PackedRow::codec, value));
    EXPECT_FALSE(sound(&PackedRow::tokens, value));
    EXPECT_FALSE(sound(&PackedRow::byte_offset, value));
  }
  EXPECT_FALSE(sound(&PackedRow::kv_head, 2));
  EXPECT_FALSE(sound(&PackedRow::codec, 256));  // 0 once cut to a byte
  EXPECT_FALSE(sound(&PackedRow::tokens, 0));
  EXPECT_FALSE(sound(&PackedRow::tokens, 65));
}

TEST(SlotsEndBy, DoesNotOverflow) {
  PackedRow row = {};
  row.tokens = 64;
  row.first_slot = std::numeric_limits<int64_t>::max() - 1;
  EXPECT_FALSE(SlotsEndBy(row, 1000));
  row.first_slot = 936;
  EXPECT_TRUE(SlotsEndBy(row, 1000));
  EXPECT_FALSE(SlotsEndBy(row, 999));
}

TEST(FiniteMean, IsZeroForWhatIsNotANumber) {
  EXPECT_EQ(FiniteMean(Float16{0x7C00}), 0.0f);
  EXPECT_EQ(FiniteMean(Float16{0x7E01}), 0.0f);
  EXPECT_EQ(FiniteMean(Float16{0x3C00}), 1.0f);
}

}  // namespace
}  // namespace kvern
