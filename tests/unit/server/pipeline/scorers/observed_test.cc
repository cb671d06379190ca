// Scorers of what the frontend observed: window queries, attention mass, scores of its own.
#include <cmath>

#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/unit/server/pipeline/live_sequence.h"

namespace kvern::pipeline {
namespace {

constexpr int64_t kTokens = 64;
support::HostKvSpec Spec() {
  return F32({.layers = 2, .kv_heads = 2, .tokens = kTokens, .head_dim = 16});
}

std::vector<float> Scores(LiveSequence& sequence, const std::string& words) {
  const auto scores = ScoresOf(*ScorerOf(words), sequence);
  EXPECT_TRUE(scores.ok()) << scores.status().ToString();
  return scores.value_or(std::vector<float>(kTokens * 4));
}

TEST(SnapKv, LooksWithTheLastQueriesOfALongerWindow) {
  LiveSequence sent_more(Spec()), sent_enough(Spec());
  SideTensors& side = sent_enough.side();
  std::vector<float> last;
  for (int64_t row = 0; row < 2 * 4; ++row) {
    const float* window = side.q_window.data() + row * 40 * 16;
    last.insert(last.end(), window + (40 - 8) * 16, window + 40 * 16);
  }
  side.q_window = last;
  side.window = 8;
  const auto more = Scores(sent_more, "snapkv:window=8");
  const auto enough = Scores(sent_enough, "snapkv:window=8");
  for (int64_t token = 0; token < kTokens - 8; ++token) EXPECT_EQ(more[token], enough[token]);
  EXPECT_TRUE(std::isnan(more[kTokens - 1]));
}

TEST(SnapKv, ProtectsItsWindowAndRefusesFewerQueriesThanIt) {
  const auto scorer = ScorerOf("snapkv:window=41");
  EXPECT_EQ(scorer->ProtectedTail(), 41);
  LiveSequence sequence(Spec());
  const auto scores = ScoresOf(*scorer, sequence);
  ASSERT_FALSE(scores.ok());
  EXPECT_EQ(scores.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(scores.status()), "INPUT_MISSING");
}

TEST(SnapKv, RefusesAnEvenPool) {
  EXPECT_FALSE(MakeScorer(ParseStageSpec("snapkv:pool_width=4").value()).ok());
}

TEST(AttentionMass, DividesByTheQueriesThatSawTheToken) {
  LiveSequence sequence(Spec());
  sequence.input().logical_tokens = 100;
  const auto per_visible = Scores(sequence, "attention_mass");
  const auto plain = Scores(sequence, "attention_mass:per_visible=false");
  for (int64_t at = 0; at < 4 * kTokens; ++at) {
    EXPECT_EQ(plain[at], sequence.side().attention_mass[at]);
    const double visible = 2.0 * static_cast<double>(100 - at % kTokens);
    EXPECT_FLOAT_EQ(per_visible[at], static_cast<float>(plain[at] / visible));
  }
}

TEST(AttentionMass, CountsByThePositionOfEachHeadsSlot) {
  LiveSequence shared(Spec()), own(Spec());
  std::vector<int32_t> positions;
  for (int64_t row = 0; row < 4; ++row) {
    for (int32_t token = 0; token < kTokens; ++token) {
      positions.push_back(row == 3 ? token + 1 : token);
    }
  }
  shared.input().logical_tokens = own.input().logical_tokens = 100;
  own.input().positions = positions;
  own.input().per_head_positions = true;
  const auto want = Scores(shared, "attention_mass"), got = Scores(own, "attention_mass");
  EXPECT_EQ(got[2 * kTokens + 5], want[2 * kTokens + 5]);
  EXPECT_GT(got[3 * kTokens + 5], want[3 * kTokens + 5]);
}

TEST(AttentionMass, RefusesAPositionBeyondTheLogicalTokens) {
  LiveSequence sequence(Spec());
  sequence.input().logical_tokens = kTokens - 1;
  const auto scores = ScoresOf(*ScorerOf("attention_mass"), sequence);
  ASSERT_FALSE(scores.ok());
  EXPECT_EQ(scores.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(AttentionMass, AsksForValuesOnlyWithTheirNorm) {
  EXPECT_EQ(ScorerOf("attention_mass")->Inputs() & kNeedsValues, 0);
  EXPECT_NE(ScorerOf("attention_mass:value_norm")->Inputs() & kNeedsValues, 0);
}

TEST(External, GivesBackWhatWasSent) {
  LiveSequence sequence(Spec());
  sequence.side().external_scores[3] = std::nanf("");
  const auto scores = Scores(sequence, "external");
  EXPECT_TRUE(std::isnan(scores[3]));
  for (int64_t at = 4; at < 4 * kTokens; ++at) {
    EXPECT_EQ(scores[at], sequence.side().external_scores[at]);
  }
}

}  // namespace
}  // namespace kvern::pipeline
