// Tables and rounding rules of the codes below 8 bits and of e4m3.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/affine_rules.h"
#include "kernels/base/fp8.h"
#include "kernels/base/sfv_rules.h"

namespace kvern {
namespace {

TEST(SfvTable, StandsInTheCanonicalOrder) {
  for (const CodecId codec : {CodecId::kSfv2, CodecId::kSfv3}) {
    const std::span<const SfvVector> vectors = SfvVectors(codec);
    ASSERT_EQ(vectors.size(), codec == CodecId::kSfv2 ? 16u : 256u);
    for (size_t n = 1; n < vectors.size(); ++n) {
      const SfvVector &a = vectors[n - 1], &b = vectors[n];
      if (a.half_square != b.half_square) {
        EXPECT_LT(a.half_square, b.half_square) << n;
      } else {
        EXPECT_LT(std::vector(a.magnitude, a.magnitude + 4),
                  std::vector(b.magnitude, b.magnitude + 4));
      }
    }
  }
}

TEST(SfvTable, HoldsMagnitudesThatF16HoldsToo) {
  for (const uint32_t word : kSfv3Words) {
    for (const float value : SfvVectorOf(word).magnitude) {
      EXPECT_GT(value, 0.0f);
      EXPECT_EQ(ToFloat(FromFloat<Float16>(value)), value);
    }
  }
}

TEST(SfvDistance, IsLeastAtTheVectorItself) {
  for (const CodecId codec : {CodecId::kSfv2, CodecId::kSfv3}) {
    const std::span<const SfvVector> vectors = SfvVectors(codec);
    for (const SfvVector& vector : vectors) {
      const float x[4] = {vector.magnitude[0], -vector.magnitude[1], vector.magnitude[2],
                          -vector.magnitude[3]};
      EXPECT_EQ(SfvDistance(vector, x), -vector.half_square);
      for (const SfvVector& other : vectors) {
        if (&other == &vector) continue;
        EXPECT_GT(SfvDistance(other, x), -vector.half_square);
      }
    }
  }
}

TEST(E4m3, GivesEveryCodeBack) {
  for (uint32_t code = 0; code < 256; ++code) {
    if ((code & 0x7F) == 0x7F || code == 0x80) continue;
    EXPECT_EQ(E4m3FromFloat(FloatFromE4m3(code)), code) << code;
  }
  EXPECT_EQ(E4m3FromFloat(-0.0f), 0);
  EXPECT_EQ(E4m3FromFloat(-0x1p-10f), 0);
  EXPECT_EQ(FloatFromE4m3(0x01), 0x1p-9f);
  EXPECT_EQ(FloatFromE4m3(0x08), 0x1p-6f);
  EXPECT_EQ(FloatFromE4m3(0x38), 1.0f);
  EXPECT_EQ(FloatFromE4m3(0xFE), -448.0f);
}

TEST(E4m3, RoundsToTheNearestCodeAndTiesToTheEvenOne) {
  for (uint32_t code = 0; code < 0x7E; ++code) {
    const float low = FloatFromE4m3(code), high = FloatFromE4m3(code + 1);
    const float middle = 0.5f * (low + high);
    EXPECT_EQ(E4m3FromFloat(middle), code + code % 2) << code;
    EXPECT_EQ(E4m3FromFloat(std::nextafter(middle, low)), code) << code;
    EXPECT_EQ(E4m3FromFloat(-std::nextafter(middle, high)), code + 1 + 128) << code;
  }
}

TEST(E4m3, Saturates) {
  for (const float value :
       {449.0f, 464.0f, 480.0f, 1e30f, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(E4m3FromFloat(value), 0x7E) << value;
    EXPECT_EQ(E4m3FromFloat(-value), 0xFE) << value;
  }
}

TEST(AffineScale, IsTheSameForBothZeros) {
  for (const float lowest : {0.0f, -0.0f}) {
    for (const float highest : {0.0f, -0.0f}) {
      const AffineScale affine = AffineScaleOf(lowest, highest);
      EXPECT_EQ(affine.scale.stored.bits, 0);
      EXPECT_EQ(affine.zero.stored.bits, 0);
    }
  }
}

TEST(AffineScale, StaysFinite) {
  const AffineScale affine = AffineScaleOf(-2e6f, 2e6f);
  EXPECT_EQ(affine.zero.value, -65504.0f);
  EXPECT_EQ(affine.scale.value, 65504.0f);
  EXPECT_EQ(AffineScaleOf(2e6f, 2e6f).zero.value, 65504.0f);
}

TEST(AffineCode, IsZeroWithoutAScaleAndClampedWithOne) {
  EXPECT_EQ(AffineCode(7.0f, 7.0f, InverseScale(0.0f)), 0.0f);
  EXPECT_EQ(AffineCode(100.0f, 0.0f, 1.0f), 15.0f);
  EXPECT_EQ(AffineCode(-1.0f, 0.0f, 1.0f), 0.0f);
  EXPECT_EQ(AffineCode(2.5f, 0.0f, 1.0f), 2.0f);
  EXPECT_EQ(AffineCode(3.5f, 0.0f, 1.0f), 4.0f);
}

}  // namespace
}  // namespace kvern
