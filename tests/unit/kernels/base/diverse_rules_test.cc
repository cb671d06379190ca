// The edges of alpha's arithmetic: zero vectors, infinities, constant scores.
#include "kernels/base/diverse_rules.h"

#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvern {
namespace {

using testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(InverseLength, IsZeroForVectorsShorterThanTheLimit) {
  EXPECT_EQ(InverseLength(0.0f), 0.0f);
  EXPECT_EQ(InverseLength(1e-25f), 0.0f);
  EXPECT_EQ(InverseLength(4.0f), 0.5f);
  EXPECT_EQ(InverseLength(kInfinity), 0.0f);
}

TEST(RowCosine, IsZeroWhereItIsNotANumber) {
  EXPECT_EQ(RowCosine(kNan, 1.0f, 1.0f), 0.0f);
  EXPECT_EQ(RowCosine(kInfinity, 0.0f, 1.0f), 0.0f);
}

TEST(Redundancy, CutsNegativesAndStaysBelowOne) {
  EXPECT_EQ(Redundancy(-1.5, 2), 0.0f);
  EXPECT_EQ(Redundancy(1.5, 2), 0.75f);
  EXPECT_EQ(Redundancy(1.0000001, 1), 1.0f);
}

TEST(ScaleToUnit, MapsFiniteScoresToTheUnitInterval) {
  std::vector<float> scores = {-2.0f, kNan, 2.0f, 0.0f, kInfinity, -kInfinity};
  ScaleToUnit(scores);
  EXPECT_THAT(scores, ElementsAre(0.0f, testing::IsNan(), 1.0f, 0.5f, 1.0f, 0.0f));
}

TEST(ScaleToUnit, MakesEqualScoresZero) {
  std::vector<float> scores = {7.0f, 7.0f, 7.0f};
  ScaleToUnit(scores);
  EXPECT_THAT(scores, ElementsAre(0.0f, 0.0f, 0.0f));
}

TEST(DiverseProblems, AddsRowsThatAreInNoGroup) {
  EXPECT_THAT(DiverseProblems({{1, 3}, {}}, /*rows=*/5),
              ElementsAre(ElementsAre(1, 3), ElementsAre(0), ElementsAre(2), ElementsAre(4)));
}

}  // namespace
}  // namespace kvern
