// The vector formulas give the bits of the scalar ones, for the instruction set of the build.
#include "kernels/base/math.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/targets.h"
// After targets.h, which says what is built.
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {

void ExpAll(std::vector<double>* values) {
  const hn::ScalableTag<double> d;
  for (size_t i = 0; i < values->size(); i += hn::Lanes(d)) {
    hn::StoreU(VectorExp(d, hn::LoadU(d, values->data() + i)), d, values->data() + i);
  }
}
void ExpFloatAll(std::vector<float>* values) {
  const hn::CappedTag<float, 16> d;
  for (size_t i = 0; i < values->size(); i += hn::Lanes(d)) {
    hn::StoreU(VectorExpFloat(d, hn::LoadU(d, values->data() + i)), d, values->data() + i);
  }
}
void LogAll(std::vector<double>* values) {
  const hn::ScalableTag<double> d;
  for (size_t i = 0; i < values->size(); i += hn::Lanes(d)) {
    hn::StoreU(VectorLog(d, hn::LoadU(d, values->data() + i)), d, values->data() + i);
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

namespace kvern::cpu {
namespace {

// 16 n values with every edge among them.
std::vector<double> Arguments() {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<double> values = {0.0,
                                -0.0,
                                1.0,
                                -1.0,
                                -708.0,
                                -708.1,
                                709.0,
                                709.1,
                                kInfinity,
                                -kInfinity,
                                1e-310,
                                std::nan(""),
                                0x1p-1022,
                                0x1.fffffffffffffp1023,
                                0.70710678118654752,
                                1e300};
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> wide(-750.0, 750.0);
  for (int i = 0; i < 32000; ++i) values.push_back(wide(random));
  for (int i = 0; i < 32000; ++i) values.push_back(std::exp2(1.4 * wide(random)));
  return values;
}

template <class T>
void ExpectSame(T got, T want, T argument) {
  if (std::isnan(want)) {
    EXPECT_TRUE(std::isnan(got)) << argument;
    return;
  }
  EXPECT_EQ(std::memcmp(&got, &want, sizeof(got)), 0)
      << argument << ": got " << got << ", want " << want;
}

TEST(VectorExp, GivesTheBitsOfTheScalarFormula) {
  const std::vector<double> arguments = Arguments();
  std::vector<double> got = arguments;
  HWY_STATIC_DISPATCH(ExpAll)(&got);
  for (size_t i = 0; i < got.size(); ++i) ExpectSame(got[i], Exp(arguments[i]), arguments[i]);
}

TEST(VectorExpFloat, GivesTheBitsOfTheScalarFormulaUpToZero) {
  std::vector<float> arguments = {-87.0f, -87.1f, -0.0f, 0.0f};
  for (const double x : Arguments()) {
    if (x <= 0) arguments.push_back(static_cast<float>(x));
  }
  for (int i = 0; i < 32000; ++i) arguments.push_back(static_cast<float>(-i) * 0.003f);
  arguments.resize((arguments.size() + 15) / 16 * 16, -1.0f);
  std::vector<float> got = arguments;
  HWY_STATIC_DISPATCH(ExpFloatAll)(&got);
  for (size_t i = 0; i < got.size(); ++i) ExpectSame(got[i], ExpFloat(arguments[i]), arguments[i]);
}

TEST(VectorLog, GivesTheBitsOfTheScalarFormula) {
  const std::vector<double> arguments = Arguments();
  std::vector<double> got = arguments;
  HWY_STATIC_DISPATCH(LogAll)(&got);
  for (size_t i = 0; i < got.size(); ++i) ExpectSame(got[i], Log(arguments[i]), arguments[i]);
}

}  // namespace
}  // namespace kvern::cpu
