// Scorers that read nothing but keys and positions.
#include <algorithm>
#include <cmath>

#include "gtest/gtest.h"
#include "tests/unit/server/pipeline/live_sequence.h"

namespace kvern::pipeline {
namespace {

constexpr int64_t kTokens = 50;
support::HostKvSpec Spec() {
  return F32({.layers = 2, .kv_heads = 2, .tokens = kTokens, .head_dim = 16});
}

std::vector<float> Scores(LiveSequence& sequence, const std::string& words) {
  const auto scores = ScoresOf(*ScorerOf(words), sequence);
  EXPECT_TRUE(scores.ok()) << scores.status().ToString();
  return scores.value_or(std::vector<float>(kTokens * 4));
}

TEST(KeyNorm, RanksTheTokenWithTheSmallestKeyFirst) {
  LiveSequence sequence(Spec());
  for (int64_t d = 0; d < 16; ++d) sequence.keys().Set(0, 0, 17, d, 0.01f);
  const auto scores = Scores(sequence, "key_norm");
  EXPECT_EQ(std::max_element(scores.begin(), scores.begin() + kTokens) - scores.begin(), 17);
  EXPECT_FLOAT_EQ(scores[17], -0.04f);
}

TEST(KeyDiff, RanksTheKeyThatPointsElsewhereFirst) {
  LiveSequence sequence(Spec());
  for (int64_t token = 0; token < kTokens; ++token) {
    sequence.keys().Set(0, 0, token, 0, token == 23 ? -50.0f : 50.0f);
  }
  const auto scores = Scores(sequence, "keydiff");
  EXPECT_EQ(std::max_element(scores.begin(), scores.begin() + kTokens) - scores.begin(), 23);
}

TEST(KeyDiff, ComparesKeysBeforeRotationWhenAsked) {
  // One key, rotated to every position: all equal once turned back.
  LiveSequence sequence(Spec());
  const RopeSpec& rope = sequence.model().rope;
  for (int64_t token = 0; token < kTokens; ++token) {
    for (int64_t band = 0; band < 8; ++band) {
      const double angle = double{rope.inv_freq[band]} * static_cast<double>(token);
      sequence.keys().Set(0, 0, token, band, static_cast<float>(std::cos(angle)));
      sequence.keys().Set(0, 0, token, band + 8, static_cast<float>(std::sin(angle)));
    }
  }
  const auto turned_back = Scores(sequence, "keydiff:unrotate");
  const auto as_cached = Scores(sequence, "keydiff");
  for (int64_t token = 0; token < kTokens; ++token) EXPECT_NEAR(turned_back[token], -1.0, 1e-6);
  EXPECT_GT(*std::max_element(as_cached.begin(), as_cached.begin() + kTokens), -0.99f);
}

TEST(KeyDiff, NeedsRopeOnlyToTurnKeysBack) {
  EXPECT_EQ(ScorerOf("keydiff")->Inputs(), kNeedsNothing);
  EXPECT_EQ(ScorerOf("keydiff:unrotate")->Inputs(), kNeedsRope);
}

TEST(Random, DrawsByPositionAndLayerOfTheModelNotBySlot) {
  LiveSequence whole(Spec()), part(Spec());
  const auto want = Scores(whole, "random:seed=3");
  // The second layer alone, its first token gone.
  SequenceInput& input = part.input();
  input.keys = {input.keys[1]};
  input.values = {input.values[1]};
  input.layer_indices = {1};
  for (int64_t token = 0; token < kTokens; ++token) {
    input.positions[token] = static_cast<int32_t>(token + 1);
  }
  const auto got = Scores(part, "random:seed=3");
  for (int64_t token = 0; token + 1 < kTokens; ++token) {
    EXPECT_EQ(got[token], want[2 * kTokens + token + 1]);
  }
}

TEST(Random, IsUniformAndDependsOnTheSeed) {
  LiveSequence sequence(F32({.layers = 4, .kv_heads = 4, .tokens = 500, .head_dim = 8}));
  const auto one = ScoresOf(*ScorerOf("random"), sequence).value();
  const auto two = ScoresOf(*ScorerOf("random:seed=1"), sequence).value();
  EXPECT_NE(one, two);
  double sum = 0;
  for (const float score : one) {
    EXPECT_GE(score, 0.0f);
    EXPECT_LT(score, 1.0f);
    sum += score;
  }
  EXPECT_NEAR(sum / static_cast<double>(one.size()), 0.5, 0.02);  // 6 standard errors
}

}  // namespace
}  // namespace kvern::pipeline
