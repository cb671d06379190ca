// ExpFloat against double, and at its edges.
#include "kernels/base/exp_float.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace kvern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(ExpFloat, IsWithinTwoUlp) {
  for (int i = -87 * 4096; i <= 88 * 4096; ++i) {
    const float x = static_cast<float>(i) / 4096.0f * 0.99999f;
    const double want = std::exp(double{x});
    const auto nearest = static_cast<float>(want);
    const double ulp = double{std::nextafter(nearest, kInfinity)} - double{nearest};
    ASSERT_LE(std::fabs(double{ExpFloat(x)} - want), 2 * ulp) << x;
  }
}

TEST(ExpFloat, IsExactAtZeroAndSaturatesAtItsEdges) {
  EXPECT_EQ(ExpFloat(0.0f), 1.0f);
  EXPECT_EQ(ExpFloat(-0.0f), 1.0f);
  EXPECT_GE(ExpFloat(-87.0f), std::numeric_limits<float>::min());
  EXPECT_EQ(ExpFloat(-87.01f), 0.0f);
  EXPECT_EQ(ExpFloat(-kInfinity), 0.0f);
  EXPECT_LT(ExpFloat(88.0f), kInfinity);
  EXPECT_EQ(ExpFloat(88.01f), kInfinity);
  EXPECT_EQ(ExpFloat(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(ExpFloat(std::nanf(""))));
}

}  // namespace
}  // namespace kvern
