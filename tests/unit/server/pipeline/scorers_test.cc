// What holds for every registered scorer, and the table itself.
#include <cmath>
#include <cstring>
#include <set>

#include "gtest/gtest.h"
#include "tests/unit/server/pipeline/live_sequence.h"

namespace kvern::pipeline {
namespace {

support::HostKvSpec SpecOf(support::BlockOrder order) {
  support::HostKvSpec spec;
  spec.layers = 2;
  spec.kv_heads = 2;
  spec.tokens = 90;
  spec.head_dim = 32;
  spec.order = order;
  return spec;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class ScorerContract : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Scorer> Make() const { return MakeScorer({GetParam(), {}}).value(); }
};

TEST_P(ScorerContract, GivesFiniteScoresToEveryTokenItCanJudge) {
  LiveSequence sequence(SpecOf(support::BlockOrder::kInOrder));
  const auto scorer = Make();
  const auto scores = ScoresOf(*scorer, sequence);
  ASSERT_TRUE(scores.ok()) << scores.status().ToString();
  std::set<float> distinct;
  for (int64_t row = 0; row < sequence.Rows(); ++row) {
    for (int64_t token = 4; token < 90 - scorer->ProtectedTail(); ++token) {
      EXPECT_TRUE(std::isfinite((*scores)[row * 90 + token])) << "row " << row << " " << token;
      distinct.insert((*scores)[row * 90 + token]);
    }
  }
  EXPECT_GT(distinct.size(), 50u) << "scores tell tokens apart";
}

TEST_P(ScorerContract, GivesTheSameBitsTwiceAndForAnyBlockOrder) {
  LiveSequence in_order(SpecOf(support::BlockOrder::kInOrder));
  LiveSequence shuffled(SpecOf(support::BlockOrder::kShuffled));
  const auto first = ScoresOf(*Make(), in_order);
  const auto again = ScoresOf(*Make(), in_order);
  const auto elsewhere = ScoresOf(*Make(), shuffled);
  ASSERT_TRUE(first.ok() && again.ok() && elsewhere.ok());
  EXPECT_TRUE(SameBits(*first, *again));
  EXPECT_TRUE(SameBits(*first, *elsewhere));
}

TEST_P(ScorerContract, RefusesAParameterItDoesNotKnow) {
  const auto scorer = MakeScorer({GetParam(), {{"no_such", "1"}}});
  ASSERT_FALSE(scorer.ok());
  EXPECT_EQ(scorer.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(ScorerContract, NeedsWhatItsTableLineSays) {
  for (const ScorerEntry& entry : Scorers()) {
    if (entry.info.name != GetParam()) continue;
    EXPECT_EQ(Make()->Inputs(), entry.info.inputs);
  }
}

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const ScorerEntry& entry : Scorers()) names.emplace_back(entry.info.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(EveryName, ScorerContract, testing::ValuesIn(Names()),
                         [](const auto& info) { return info.param; });

TEST(Scorers, ListsThoseKnownWhenANameIsUnknown) {
  const auto scorer = MakeScorer({"no_such", {}});
  ASSERT_FALSE(scorer.ok());
  EXPECT_EQ(scorer.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(scorer.status().message());
  for (const ScorerEntry& entry : Scorers()) {
    EXPECT_NE(message.find(entry.info.name), std::string::npos) << entry.info.name;
  }
}

}  // namespace
}  // namespace kvern::pipeline
