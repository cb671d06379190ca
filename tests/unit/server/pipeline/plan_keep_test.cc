// What holds for every keep plan: protection, counts, order, identity, independence of layout.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "server/pipeline/protection.h"
#include "tests/unit/server/pipeline/live_sequence.h"

namespace kvern::pipeline {
namespace {

constexpr int64_t kTokens = 96;

support::HostKvSpec Spec() {
  return F32({.layers = 2, .kv_heads = 2, .tokens = kTokens, .head_dim = 16});
}

absl::StatusOr<KeepPlan> Plan(LiveSequence& sequence, const PolicyWords& words) {
  const std::unique_ptr<Backend> backend = RefBackend();
  return PlanKeep(*backend, sequence.input(), PolicyOf(words));
}

std::vector<int32_t> RowOf(const KeepPlan& plan, int64_t row) {
  const int64_t layer = row / plan.keep.kv_heads, head = row % plan.keep.kv_heads;
  const int32_t* tokens = plan.keep.Row(layer, head);
  return {tokens, tokens + plan.keep.Count(layer, head)};
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(PlanKeep, HoldsItsPromisesForRandomPolicies) {
  std::mt19937_64 random(11);
  const auto draw = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
  const std::vector<std::vector<std::string>> scorers = {
      {"key_norm"},
      {"external"},
      {"snapkv:window=6"},
      {"random", "keydiff:unrotate"},
      {"expected_attention:rank=4,log", "attention_mass", "triattention"}};
  const std::vector<std::string> selectors = {"topk", "topk:share=all", "diverse",
                                              "diverse:share=heads", "sink_recent"};
  for (int round = 0; round < 120; ++round) {
    LiveSequence sequence(Spec(), random());
    sequence.input().readonly_prefix_tokens = draw(3) == 0 ? draw(12) : 0;
    if (draw(2) == 0) {
      const int64_t begin = draw(kTokens);
      sequence.input().protected_ranges = {{begin, std::min(begin + draw(20), kTokens)}};
    }
    PolicyWords words;
    words.budget = TokenBudget{draw(kTokens + 10)};
    words.scorers = scorers[draw(scorers.size())];
    words.selector = selectors[draw(selectors.size())];
    words.blend = draw(2) == 0 ? BlendKind::kMax : BlendKind::kSum;
    words.sink_tokens = draw(6);
    words.recent_tokens = draw(20);
    words.recent_share = draw(2) == 0 ? 0.5 : 0.0;
    SCOPED_TRACE(absl::StrCat("round ", round, " ", words.selector, " ", words.scorers[0]));
    const auto plan = Plan(sequence, words);
    ASSERT_TRUE(plan.ok()) << plan.status().ToString();
    const ResolvedPolicy policy = PolicyOf(words);
    for (int64_t row = 0; row < sequence.Rows(); ++row) {
      const std::vector<int32_t> kept = RowOf(*plan, row);
      ASSERT_EQ(static_cast<int64_t>(kept.size()), plan->counts.counts[row]);
      EXPECT_TRUE(std::adjacent_find(kept.begin(), kept.end(), std::greater_equal<>()) ==
                  kept.end())
          << "ascending, each once";
      EXPECT_TRUE(kept.empty() || (kept.front() >= 0 && kept.back() < kTokens));
      for (const TokenSpan& span : HardProtected(sequence.input(), policy, kTokens)) {
        for (int64_t token = span.begin; token < span.end; ++token) {
          EXPECT_TRUE(std::binary_search(kept.begin(), kept.end(), token)) << token;
        }
      }
      for (int64_t token = kTokens - plan->counts.recent[row]; token < kTokens; ++token) {
        EXPECT_TRUE(std::binary_search(kept.begin(), kept.end(), token)) << token;
      }
      for (size_t slot = 0; slot < kept.size(); ++slot) {
        EXPECT_EQ(plan->kept_positions[row * plan->max_kept + slot], kept[slot]);
      }
    }
  }
}

TEST(PlanKeep, DoesNotDependOnBlockSizeOrOrder) {
  for (const char* scorer : {"key_norm", "expected_attention:rank=4", "triattention"}) {
    support::HostKvSpec elsewhere = Spec();
    elsewhere.block_tokens = 7;
    elsewhere.order = support::BlockOrder::kShuffled;
    elsewhere.layout = support::TileLayout::kColumns;
    LiveSequence first(Spec()), second(elsewhere);
    PolicyWords words;
    words.scorers = {scorer, "keydiff:unrotate"};
    words.selector = "diverse";
    const auto a = Plan(first, words), b = Plan(second, words);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(a->keep.tokens, b->keep.tokens);
    EXPECT_TRUE(SameBits(a->scores, b->scores));
  }
}

TEST(PlanKeep, KeepsEverythingWithoutScoringWhenTheBudgetCoversIt) {
  LiveSequence sequence(Spec());
  sequence.side().external_scores.clear();  // and does not ask for what it does not need
  PolicyWords words;
  words.scorers = {"external"};
  words.budget = TokenBudget{kTokens};
  const auto plan = Plan(sequence, words);
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  EXPECT_TRUE(plan->scores.empty());
  EXPECT_EQ(plan->shape_class, ShapeClass::kS0);
  EXPECT_EQ(plan->max_kept, kTokens);
  for (int64_t row = 0; row < sequence.Rows(); ++row) {
    for (int32_t token = 0; token < kTokens; ++token) EXPECT_EQ(RowOf(*plan, row)[token], token);
  }
}

TEST(PlanKeep, LeavesNothingToDoAtTheBudgetItWasCutTo) {
  LiveSequence sequence(Spec());
  PolicyWords words;
  words.budget = TokenBudget{40};
  const auto first = Plan(sequence, words);
  ASSERT_TRUE(first.ok());
  LiveSequence cut(F32({.layers = 2, .kv_heads = 2, .tokens = 40, .head_dim = 16}));
  cut.input().positions = first->kept_positions;
  cut.input().per_head_positions = true;
  cut.input().logical_tokens = kTokens;
  const auto again = Plan(cut, words);
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(again->counts.EverythingStays(cut.input()));
  EXPECT_EQ(again->kept_positions, first->kept_positions);
}

TEST(PlanKeep, BlendsZScoresOverCandidatesAndHidesTheProtected) {
  LiveSequence sequence(Spec());
  PolicyWords words;
  words.scorers = {"external", "key_norm"};
  words.blend = BlendKind::kSum;
  const auto plan = Plan(sequence, words);
  ASSERT_TRUE(plan.ok());
  const auto z = [&](const std::vector<float>& scores, int64_t row, int64_t token) {
    double sum = 0, square = 0, n = 0;
    for (int64_t t = 4; t < kTokens - 8; ++t, ++n) sum += scores[row * kTokens + t];
    for (int64_t t = 4; t < kTokens - 8; ++t) {
      square += std::pow(scores[row * kTokens + t] - sum / n, 2);
    }
    return (scores[row * kTokens + token] - sum / n) / std::sqrt(square / n);
  };
  const auto norms = ScoresOf(*ScorerOf("key_norm"), sequence).value();
  for (int64_t row = 0; row < sequence.Rows(); ++row) {
    for (int64_t token = 0; token < kTokens; ++token) {
      const float got = plan->scores[row * kTokens + token];
      if (token < 4 || token >= kTokens - 8) {
        EXPECT_TRUE(std::isnan(got)) << token;
        continue;
      }
      const double want = z(sequence.side().external_scores, row, token) + z(norms, row, token);
      EXPECT_NEAR(got, want, 1e-5);
    }
  }
}

TEST(PlanKeep, LeavesTheScoresOfASingleScorerAsTheyAre) {
  LiveSequence sequence(Spec());
  PolicyWords words;
  words.scorers = {"external"};
  const auto plan = Plan(sequence, words);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->scores[20], sequence.side().external_scores[20]);
}

TEST(PlanKeep, RanksNanLastAndCountsIt) {
  LiveSequence sequence(Spec());
  for (const int64_t at : {10, 11, 12, 1, 95}) sequence.side().external_scores[at] = std::nanf("");
  PolicyWords words;
  words.scorers = {"external"};
  words.budget = TokenBudget{kTokens - 3};
  const auto plan = Plan(sequence, words);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->nan_scores, 3) << "sinks and recent tokens are not judged";
  const std::vector<int32_t> kept = RowOf(*plan, 0);
  for (const int32_t token : {10, 11, 12}) {
    EXPECT_FALSE(std::binary_search(kept.begin(), kept.end(), token));
  }
}

TEST(PlanKeep, NamesTheInputThatAScorerDidNotGet) {
  const std::pair<const char*, const char*> kCases[] = {{"external", "external_scores"},
                                                        {"attention_mass", "attention_mass"},
                                                        {"snapkv", "q_window"},
                                                        {"triattention", "calibration"},
                                                        {"expected_attention", "query_moments"}};
  for (const auto& [scorer, input] : kCases) {
    LiveSequence sequence(Spec());
    sequence.side() = {};
    sequence.calibrations() = {};
    PolicyWords words;
    words.scorers = {scorer};
    const auto plan = Plan(sequence, words);
    ASSERT_FALSE(plan.ok()) << scorer;
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(plan.status()), "INPUT_MISSING");
    EXPECT_NE(std::string(plan.status().message()).find(input), std::string::npos);
  }
  LiveSequence sequence(Spec());
  sequence.model().rope.inv_freq.clear();
  PolicyWords words;
  words.scorers = {"keydiff:unrotate"};
  EXPECT_EQ(ReasonOf(Plan(sequence, words).status()), "ROPE_UNKNOWN");
}

TEST(PlanKeep, DropsTheOldestProtectedTokensWhenToldToTrim) {
  LiveSequence sequence(Spec());
  sequence.input().protected_ranges = {{20, 50}};
  PolicyWords words;
  words.budget = TokenBudget{14};
  words.on_conflict = OnConflict::kTrimOldest;
  const auto plan = Plan(sequence, words);
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  EXPECT_EQ(RowOf(*plan, 1),
            (std::vector<int32_t>{0, 1, 2, 3, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49}));
}

TEST(PlanKeep, KeepsWithinTheLengthOfEachHead) {
  support::HostKvSpec ragged = Spec();
  ragged.lengths = {96, 30};
  LiveSequence sequence(ragged);
  PolicyWords words;
  words.budget = TokenBudget{24};
  const auto plan = Plan(sequence, words);
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  EXPECT_EQ(plan->shape_class, ShapeClass::kS2);
  const std::vector<int32_t> kept = RowOf(*plan, 1);
  EXPECT_EQ(kept.back(), 29);
  EXPECT_TRUE(std::binary_search(kept.begin(), kept.end(), 22)) << "the last 8 of this head";
  words.budget = TokenBudget{40};
  const auto uneven = Plan(sequence, words);
  ASSERT_TRUE(uneven.ok());
  EXPECT_EQ(uneven->shape_class, ShapeClass::kS4);
  EXPECT_EQ(uneven->kept_positions[uneven->max_kept + 30], -1);
}

TEST(PlanKeep, RenumbersPositionsFromZero) {
  LiveSequence sequence(Spec());
  PolicyWords words;
  words.positions = PositionMode::kRenumber;
  const auto plan = Plan(sequence, words);
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  for (int64_t at = 0; at < 4 * 48; ++at) EXPECT_EQ(plan->kept_positions[at], at % 48);
}

TEST(PlanKeep, RefusesToRenumberWhatCannotTurn) {
  PolicyWords words;
  words.positions = PositionMode::kRenumber;
  LiveSequence no_rope(Spec());
  no_rope.model().rope.inv_freq.clear();
  EXPECT_EQ(ReasonOf(Plan(no_rope, words).status()), "ROPE_UNKNOWN");
  LiveSequence gap(Spec());
  gap.input().readonly_prefix_tokens = 10;
  for (size_t slot = 6; slot < kTokens; ++slot) ++gap.input().positions[slot];
  gap.input().logical_tokens = kTokens + 1;
  const auto plan = Plan(gap, words);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  support::HostKvSpec ragged = Spec();
  ragged.lengths = {96, 30};
  LiveSequence uneven(ragged);
  words.budget = TokenBudget{40};
  EXPECT_EQ(ReasonOf(Plan(uneven, words).status()), "SHAPE_CLASS");
}

TEST(PlanKeep, TakesEmptySequencesAndBudgets) {
  LiveSequence empty(F32({.layers = 2, .kv_heads = 2, .tokens = 0, .head_dim = 16}));
  const auto nothing = Plan(empty, {});
  ASSERT_TRUE(nothing.ok()) << nothing.status().ToString();
  EXPECT_EQ(nothing->max_kept, 0);
  LiveSequence sequence(Spec());
  PolicyWords words;
  words.budget = TokenBudget{0};
  words.sink_tokens = 0;
  const auto none = Plan(sequence, words);
  ASSERT_TRUE(none.ok()) << none.status().ToString();
  EXPECT_TRUE(none->keep.tokens.empty());
}

}  // namespace
}  // namespace kvern::pipeline
