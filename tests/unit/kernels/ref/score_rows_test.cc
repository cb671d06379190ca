// ZScore, Scale, Blend, ShareRows and AttentionMass on rows small enough to check by hand.
#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/ref/attention_mass.h"
#include "kernels/ref/elementwise.h"
#include "kernels/ref/share_rows.h"
#include "kernels/ref/z_score.h"
#include "tests/support/host_kv.h"

namespace kvern::ref {
namespace {

using ::testing::ElementsAre;
using ::testing::FloatEq;
using ::testing::FloatNear;
using ::testing::NanSensitiveFloatEq;
using Row = std::vector<float>;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

ScoreView OneRow(Row& scores) {
  return DenseView(scores.data(), 1, 1, static_cast<int64_t>(scores.size()));
}

Row ZScored(Row scores, const std::vector<uint8_t>& candidates) {
  const MaskView mask = DenseView(candidates.data(), 1, 1, static_cast<int64_t>(scores.size()));
  EXPECT_TRUE(ZScore(nullptr, mask, OneRow(scores)).ok());
  return scores;
}

TEST(ZScore, UsesTheBiasedDeviationOfTheCandidates) {
  EXPECT_THAT(ZScored({1, 3, 1, 3, 100}, {1, 1, 1, 1, 0}), ElementsAre(-1, 1, -1, 1, 98));
}

TEST(ZScore, IsZeroWithoutSpread) {
  EXPECT_THAT(ZScored({5, 5, 5}, {1, 1, 1}), ElementsAre(0, 0, 0));
  EXPECT_THAT(ZScored({5}, {1}), ElementsAre(0));
  EXPECT_THAT(ZScored({5, 6}, {0, 0}), ElementsAre(0, 0));
}

TEST(ZScore, LeavesOutWhatIsNotFinite) {
  EXPECT_THAT(
      ZScored({1, kNaN, 3, kInf}, {1, 1, 1, 1}),
      ElementsAre(FloatEq(-1), NanSensitiveFloatEq(kNaN), FloatEq(1), NanSensitiveFloatEq(kNaN)));
}

TEST(ZScore, KeepsItsDigitsUnderALargeOffset) {
  const Row scores = ZScored({1e6f + 1, 1e6f + 3}, {1, 1});
  EXPECT_THAT(scores, ElementsAre(-1, 1));
}

TEST(Scale, Multiplies) {
  Row scores = {1, -2, kNaN};
  ASSERT_TRUE(Scale(nullptr, -3.0f, OneRow(scores)).ok());
  EXPECT_THAT(scores, ElementsAre(-3, 6, NanSensitiveFloatEq(kNaN)));
}

Row Blended(BlendKind kind, Row scores, Row into) {
  EXPECT_TRUE(Blend(nullptr, kind, OneRow(scores), OneRow(into)).ok());
  return into;
}

TEST(Blend, TakesTheLargerAndPassesNaN) {
  EXPECT_THAT(
      Blended(BlendKind::kMax, {1, 5, kNaN, 1}, {2, 3, 1, kNaN}),
      ElementsAre(FloatEq(2), FloatEq(5), NanSensitiveFloatEq(kNaN), NanSensitiveFloatEq(kNaN)));
}

TEST(Blend, AddsAndPassesNaN) {
  EXPECT_THAT(Blended(BlendKind::kSum, {1, kNaN}, {2, 1}),
              ElementsAre(FloatEq(3), NanSensitiveFloatEq(kNaN)));
}

TEST(ShareRows, GivesEveryRowOfAGroupTheMean) {
  Row scores = {1, 2, 10, 20, 3, kNaN};
  const std::vector<std::vector<int64_t>> groups = {{0, 2}};
  ASSERT_TRUE(
      ShareRows(nullptr, groups, GroupReduce::kMean, DenseView(scores.data(), 3, 1, 2)).ok());
  const auto nan = NanSensitiveFloatEq(kNaN);
  EXPECT_THAT(scores, ElementsAre(FloatEq(2), nan, FloatEq(10), FloatEq(20), FloatEq(2), nan));
}

TEST(ShareRows, GivesEveryRowOfAGroupTheMaximum) {
  Row scores = {1, 7, 10, 2};
  ASSERT_TRUE(
      ShareRows(nullptr, {{0, 1}}, GroupReduce::kMax, DenseView(scores.data(), 1, 2, 2)).ok());
  EXPECT_THAT(scores, ElementsAre(10, 7, 10, 7));
}

class AttentionMassTest : public ::testing::Test {
 protected:
  AttentionMassTest() : values_({.tokens = 3, .head_dim = 8}) {
    values_.Set(0, 0, 0, 0, 3.0f);
    values_.Set(0, 0, 0, 1, 4.0f);
    values_.Set(0, 0, 1, 5, 2.0f);
    args_.mass = DenseView(static_cast<const float*>(mass_.data()), 1, 1, 3);
    args_.visible = DenseView(static_cast<const double*>(visible_.data()), 1, 1, 3);
    args_.values = values_.refs();
  }
  Row Scores() {
    Row scores(3);
    EXPECT_TRUE(AttentionMass(nullptr, args_, OneRow(scores)).ok());
    return scores;
  }

  support::HostKv values_;
  std::vector<float> mass_ = {6, 1, 0};
  std::vector<double> visible_ = {3, 2, 1};
  AttentionMassArgs args_;
};

TEST_F(AttentionMassTest, DividesByTheQueriesThatSawTheToken) {
  EXPECT_THAT(Scores(), ElementsAre(2, 0.5, 0));
  args_.per_visible = false;
  EXPECT_THAT(Scores(), ElementsAre(6, 1, 0));
}

TEST_F(AttentionMassTest, WeighsByTheValue) {
  args_.value_norm = true;
  EXPECT_THAT(Scores(), ElementsAre(10, 1, 0));
}

TEST_F(AttentionMassTest, FloorsTheLogarithmOfNoMass) {
  args_.log = true;
  EXPECT_THAT(Scores(),
              ElementsAre(FloatNear(std::log(2.0f), 1e-6f), FloatNear(std::log(0.5f), 1e-6f),
                          FloatNear(std::log(1e-30f), 1e-4f)));
}

}  // namespace
}  // namespace kvern::ref
