// alpha against a naive double greedy, its published examples and its invariances.
#include "kernels/ref/diverse.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/ref/top_k.h"
#include "tests/support/host_kv.h"

namespace kvern {
namespace {

using testing::ElementsAre;

// Rows of one layer; every head has the same scores unless a test changes them.
class Alpha {
 public:
  Alpha(std::vector<float> scores, const std::vector<std::vector<float>>& values)
      : scores_(std::move(scores)),
        kv_({.dtype = DType::kF32, .tokens = static_cast<int64_t>(values.size()), .head_dim = 8}),
        ones_(scores_.size(), 1),
        zeros_(scores_.size(), 0) {
    for (size_t token = 0; token < values.size(); ++token) {
      for (size_t d = 0; d < values[token].size(); ++d) kv_.Set(0, 0, token, d, values[token][d]);
    }
    const int64_t tokens = static_cast<int64_t>(scores_.size());
    args.scores = DenseView(static_cast<const float*>(scores_.data()), 1, 1, tokens);
    args.candidates = DenseView(static_cast<const uint8_t*>(ones_.data()), 1, 1, tokens);
    args.forced = DenseView(static_cast<const uint8_t*>(zeros_.data()), 1, 1, tokens);
    args.values = kv_.refs();
    args.tie = TieRule::kOldest;
  }

  std::vector<int32_t> Picks(float lambda, int64_t picks) {
    args.lambda = lambda;
    const std::vector<int64_t> rows = {0};
    return *ref::DiversePicks(/*stop=*/nullptr, args, rows, picks);
  }

  DiverseArgs args;

 private:
  std::vector<float> scores_;
  support::HostKv kv_;
  std::vector<uint8_t> ones_;
  std::vector<uint8_t> zeros_;
};

TEST(RefDiverse, MatchesTheGoldenExample) {
  Alpha alpha({1.0f, .9f, .8f, .5f, .2f}, {{1, 0}, {1, .1f}, {.9f, .1f}, {0, 1}, {-1, 0}});
  EXPECT_THAT(alpha.Picks(0.0f, 3), ElementsAre(0, 1, 2));
  EXPECT_THAT(alpha.Picks(.25f, 3), ElementsAre(0, 1, 2));
  EXPECT_THAT(alpha.Picks(.5f, 3), ElementsAre(0, 3, 1));
  EXPECT_THAT(alpha.Picks(1.0f, 3), ElementsAre(0, 3, 4));
}

TEST(RefDiverse, PaysForTheOrderOfPicks) {
  // cos(a, b) = cos(b, c) = .9 and cos(a, c) = .62: only the largest counts, once per pick.
  const float side = std::sqrt(1 - .81f);
  Alpha alpha({1.0f, .95f, .2f}, {{.9f, side}, {1, 0}, {.9f, -side}});
  EXPECT_THAT(alpha.Picks(.5f, 3), ElementsAre(0, 1, 2));
  EXPECT_THAT(alpha.Picks(4.0f, 3), ElementsAre(0, 2, 1));
}

TEST(RefDiverse, PicksOnePerClusterUnderALargePenalty) {
  Alpha alpha({1, 1, 1, 1, 1, 1},
              {{1, 0, 0}, {2, 0, 0}, {0, 1, 0}, {0, 3, 0}, {0, 0, 1}, {0, 0, 5}});
  EXPECT_THAT(alpha.Picks(100.0f, 3), ElementsAre(0, 2, 4));
  alpha.args.tie = TieRule::kRecent;
  EXPECT_THAT(alpha.Picks(100.0f, 3), ElementsAre(5, 3, 1));
}

TEST(RefDiverse, GivesZeroVectorsNoPenalty) {
  Alpha alpha({1.0f, .9f, .8f}, {{1, 0}, {1, 0}, {0, 0}});
  EXPECT_THAT(alpha.Picks(.5f, 3), ElementsAre(0, 2, 1));
}

TEST(RefDiverse, PicksNanLast) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Alpha alpha({nan, .1f, nan, .2f}, {{1, 0}, {0, 1}, {1, 1}, {1, 0}});
  EXPECT_THAT(alpha.Picks(.5f, 4), ElementsAre(3, 1, 0, 2));
}

TEST(RefDiverse, DoesNotDependOnTheLengthOfValues) {
  std::mt19937_64 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> scores(40);
  std::vector<std::vector<float>> values(40, std::vector<float>(8));
  for (float& score : scores) score = normal(random);
  for (std::vector<float>& value : values) {
    for (float& x : value) x = normal(random);
  }
  Alpha plain(scores, values);
  for (size_t token = 0; token < values.size(); ++token) {
    for (float& x : values[token]) x = std::ldexp(x, static_cast<int>(token % 9) - 4);
  }
  Alpha scaled(scores, values);
  EXPECT_EQ(plain.Picks(.5f, 40), scaled.Picks(.5f, 40));
}

TEST(RefDiverse, ScalesScoresToTheUnitIntervalWhenAsked) {
  // As is, the gap of 100 outweighs lambda; scaled to [0, 1] it is .1.
  Alpha alpha({1000.0f, 900.0f, 0.0f}, {{1, 0}, {1, 0}, {0, 1}});
  EXPECT_THAT(alpha.Picks(1.0f, 2), ElementsAre(0, 1));
  alpha.args.scale = ScoreScale::kMinMax;
  EXPECT_THAT(alpha.Picks(1.0f, 2), ElementsAre(0, 2));
}

// The definition, in double, with the whole set looked at for every gain.
std::vector<int32_t> NaivePicks(const std::vector<float>& scores,
                                const std::vector<std::vector<float>>& values, double lambda) {
  const auto cosine = [&](int32_t a, int32_t b) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t d = 0; d < values[a].size(); ++d) {
      ab += double{values[a][d]} * values[b][d];
      aa += double{values[a][d]} * values[a][d];
      bb += double{values[b][d]} * values[b][d];
    }
    return ab / std::sqrt(aa * bb);
  };
  std::vector<int32_t> left(scores.size());
  std::iota(left.begin(), left.end(), 0);
  std::vector<int32_t> picks;
  while (!left.empty()) {
    const auto gain = [&](int32_t i) {
      double most = 0;
      for (const int32_t pick : picks) most = std::max(most, cosine(i, pick));
      return scores[i] - lambda * most;
    };
    const auto best = std::max_element(left.begin(), left.end(),
                                       [&](int32_t a, int32_t b) { return gain(a) < gain(b); });
    picks.push_back(*best);
    left.erase(best);
  }
  return picks;
}

TEST(RefDiverse, EqualsTheNaiveGreedy) {
  std::mt19937_64 random(12);
  std::normal_distribution<float> normal;
  for (const float lambda : {.25f, 1.0f}) {
    std::vector<float> scores(30);
    std::vector<std::vector<float>> values(30, std::vector<float>(8));
    for (float& score : scores) score = normal(random);
    for (std::vector<float>& value : values) {
      for (float& x : value) x = normal(random);
    }
    Alpha alpha(scores, values);
    EXPECT_EQ(alpha.Picks(lambda, 30), NaivePicks(scores, values, lambda));
  }
}

struct Heads {
  static constexpr int64_t kTokens = 24;
  support::HostKv kv = support::RandomKv({.kv_heads = 2, .tokens = kTokens, .head_dim = 16}, 9);
  std::vector<float> scores = support::RandomFloats(kTokens, 10);
  std::vector<uint8_t> forced = std::vector<uint8_t>(kTokens, 0);
  std::vector<uint8_t> candidates = std::vector<uint8_t>(kTokens, 1);

  // Both heads share scores and masks.
  KeepList Run(const std::vector<std::vector<int64_t>>& groups) {
    const std::vector<int32_t> counts = {9, 9};
    KeepList keep = KeepList::WithCounts(DenseView(counts.data(), 1, 2));
    DiverseArgs args;
    args.scores = {scores.data(), {1, 2, kTokens}, {0, 0, 1}};
    args.candidates = {candidates.data(), {1, 2, kTokens}, {0, 0, 1}};
    args.forced = {forced.data(), {1, 2, kTokens}, {0, 0, 1}};
    args.values = kv.refs();
    args.lambda = 1.5f;
    args.groups = groups;
    EXPECT_TRUE(ref::Diverse(/*stop=*/nullptr, args, &keep).ok());
    return keep;
  }
};

std::vector<int32_t> RowOfKeep(const KeepList& keep, int64_t head) {
  return {keep.Row(0, head), keep.Row(0, head) + keep.Count(0, head)};
}

TEST(RefDiverse, GivesGroupsOneAnswerOfTheirMeanCosine) {
  Heads heads;
  const KeepList alone = heads.Run({});
  EXPECT_NE(RowOfKeep(alone, 0), RowOfKeep(alone, 1));
  const KeepList shared = heads.Run({{0, 1}});
  EXPECT_EQ(RowOfKeep(shared, 0), RowOfKeep(shared, 1));
  // Of two equal heads the mean is the cosine of one.
  for (int64_t token = 0; token < Heads::kTokens; ++token) {
    for (int64_t d = 0; d < 16; ++d) heads.kv.Set(0, 1, token, d, heads.kv.Get(0, 0, token, d));
  }
  EXPECT_EQ(RowOfKeep(heads.Run({{0, 1}}), 0), RowOfKeep(alone, 0));
}

TEST(RefDiverse, KeepsForcedTokensWithoutMakingThemSeeds) {
  Heads heads;
  const KeepList before = heads.Run({});
  heads.forced[23] = 1;
  heads.candidates[23] = 0;
  // The forced token is a copy of the best one: as a seed it would push that one down.
  const auto best = std::max_element(heads.scores.begin(), heads.scores.end() - 1);
  const int64_t best_token = best - heads.scores.begin();
  for (int64_t d = 0; d < 16; ++d) heads.kv.Set(0, 0, 23, d, heads.kv.Get(0, 0, best_token, d));
  const std::vector<int32_t> row = RowOfKeep(heads.Run({}), 0);
  EXPECT_TRUE(std::is_sorted(row.begin(), row.end()));
  EXPECT_EQ(row.back(), 23);
  EXPECT_THAT(row, testing::Contains(best_token));
}

}  // namespace
}  // namespace kvern
