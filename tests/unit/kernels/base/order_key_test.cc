// Integers in the order of scores.
#include "kernels/base/order_key.h"

#include <limits>
#include <vector>

#include "gtest/gtest.h"

namespace kvern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(OrderKey, AscendsWithTheScore) {
  const std::vector<float> ascending = {-kInfinity, -3e38f, -1.0f, -1e-40f, 0.0f,
                                        1e-40f,     0.5f,   1.0f,  3e38f,   kInfinity};
  for (size_t i = 1; i < ascending.size(); ++i) {
    EXPECT_LT(OrderKey(ascending[i - 1]), OrderKey(ascending[i])) << ascending[i];
  }
}

TEST(OrderKey, TreatsBothZerosAsEqual) { EXPECT_EQ(OrderKey(-0.0f), OrderKey(0.0f)); }

TEST(OrderKey, PutsEveryNanBelowMinusInfinity) {
  EXPECT_EQ(OrderKey(kNan), OrderKey(-kNan));
  EXPECT_LT(OrderKey(kNan), OrderKey(-kInfinity));
}

TEST(OrderKey, GivesTheScoreBack) {
  for (const float score : {-kInfinity, -2.5f, -1e-42f, 0.0f, 7.0f, kInfinity}) {
    EXPECT_EQ(ScoreOfOrderKey(OrderKey(score)), score);
  }
}

TEST(RankKey, DecidesEqualScoresByPrecedence) {
  EXPECT_LT(RankKey(1.0f, 3), RankKey(1.0f, 4));
  EXPECT_LT(RankKey(1.0f, 0xFFFFFFFFu), RankKey(1.5f, 0));
}

}  // namespace
}  // namespace kvern
