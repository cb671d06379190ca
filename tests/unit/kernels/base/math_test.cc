// Exp, Log and SinCos against long double, and at their edges.
#include "kernels/base/math.h"

#include <cmath>
#include <limits>
#include <random>

#include "gtest/gtest.h"

namespace kvern {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double UlpOf(double value) {
  return std::nextafter(std::fabs(value), kInfinity) - std::fabs(value);
}

TEST(Exp, IsWithinTwoUlp) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> wide(-708.0, 709.0);
  std::uniform_real_distribution<double> narrow(-1.0, 1.0);
  for (int i = 0; i < 100000; ++i) {
    const double x = i % 2 == 0 ? wide(random) : narrow(random);
    const long double want = std::exp(static_cast<long double>(x));
    ASSERT_LE(std::fabs(static_cast<double>(Exp(x) - want)), 2 * UlpOf(static_cast<double>(want)))
        << x;
  }
}

TEST(Exp, IsExactAtZeroAndSaturatesAtItsEdges) {
  EXPECT_EQ(Exp(0.0), 1.0);
  EXPECT_EQ(Exp(-0.0), 1.0);
  EXPECT_GT(Exp(-708.0), 0.0);
  EXPECT_EQ(Exp(-708.5), 0.0);
  EXPECT_EQ(Exp(-kInfinity), 0.0);
  EXPECT_LT(Exp(709.0), kInfinity);
  EXPECT_EQ(Exp(709.5), kInfinity);
  EXPECT_EQ(Exp(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(Exp(kNaN)));
}

TEST(Log, IsWithinTwoUlp) {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> exponent(-1021.0, 1023.0);
  std::uniform_real_distribution<double> near_one(0.5, 2.0);
  for (int i = 0; i < 100000; ++i) {
    const double x = i % 2 == 0 ? std::exp2(exponent(random)) : near_one(random);
    const long double want = std::log(static_cast<long double>(x));
    ASSERT_LE(std::fabs(static_cast<double>(Log(x) - want)), 2 * UlpOf(static_cast<double>(want)))
        << x;
  }
}

TEST(Log, IsExactAtOneAndDefinedAtItsEdges) {
  EXPECT_EQ(Log(1.0), 0.0);
  EXPECT_EQ(Log(0.0), -kInfinity);
  EXPECT_EQ(Log(-0.0), -kInfinity);
  EXPECT_EQ(Log(std::numeric_limits<double>::denorm_min()), -kInfinity);
  EXPECT_NEAR(Log(std::numeric_limits<double>::min()), -708.396418532264, 1e-12);
  EXPECT_NEAR(Log(std::numeric_limits<double>::max()), 709.782712893384, 1e-12);
  EXPECT_EQ(Log(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(Log(-1.0)));
  EXPECT_TRUE(std::isnan(Log(kNaN)));
}

TEST(SinCos, IsWithin1e15OfTheTruth) {
  std::mt19937_64 random(3);
  std::uniform_real_distribution<double> wide(-0x1p24, 0x1p24);
  std::uniform_real_distribution<double> narrow(-7.0, 7.0);
  for (int i = 0; i < 100000; ++i) {
    const double x = i % 2 == 0 ? wide(random) : narrow(random);
    double sine;
    double cosine;
    SinCos(x, &sine, &cosine);
    ASSERT_NEAR(sine, static_cast<double>(std::sin(static_cast<long double>(x))), 1e-15) << x;
    ASSERT_NEAR(cosine, static_cast<double>(std::cos(static_cast<long double>(x))), 1e-15) << x;
  }
}

TEST(SinCos, IsExactAtZeroAndNaNOutsideTheNumbers) {
  double sine = 5;
  double cosine = 5;
  SinCos(0.0, &sine, &cosine);
  EXPECT_EQ(sine, 0.0);
  EXPECT_EQ(cosine, 1.0);
  SinCos(kInfinity, &sine, &cosine);
  EXPECT_TRUE(std::isnan(sine));
  EXPECT_TRUE(std::isnan(cosine));
}

}  // namespace
}  // namespace kvern
