// The table is what its comment says: f16, symmetric, and a fixed point of Lloyd's iteration.
#include "kernels/base/lm4_table.h"

#include <cmath>

#include "gtest/gtest.h"
#include "kernels/base/dtype.h"

namespace kvern {
namespace {

TEST(Lm4Table, HoldsAscendingSymmetricF16Values) {
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(ToFloat(FromFloat<Float16>(kLm4Levels[i])), kLm4Levels[i]);
    EXPECT_EQ(kLm4Levels[i], -kLm4Levels[15 - i]);
  }
  for (int i = 1; i < 16; ++i) EXPECT_LT(kLm4Levels[i - 1], kLm4Levels[i]);
}

TEST(Lm4Table, PutsEachLevelAtTheMeanOfItsCellOnTheSphereOf128) {
  // One coordinate of a uniform unit vector times sqrt(128) has density (1 - x^2 / 128)^62.5.
  const auto density = [](double x) { return std::pow(1.0 - x * x / 128.0, 62.5); };
  for (int i = 8; i < 16; ++i) {
    const double low = Lm4Boundary(i - 1);
    const double high = i == 15 ? std::sqrt(128.0) : Lm4Boundary(i);
    double mass = 0;
    double moment = 0;
    constexpr int kSteps = 20000;
    for (int step = 0; step < kSteps; ++step) {
      const double x = low + (high - low) * (step + 0.5) / kSteps;
      mass += density(x);
      moment += x * density(x);
    }
    EXPECT_NEAR(moment / mass, kLm4Levels[i], 1.5e-3) << i;  // f16 has an ulp of 2e-3 here
  }
}

}  // namespace
}  // namespace kvern
