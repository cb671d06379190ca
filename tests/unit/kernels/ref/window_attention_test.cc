// SnapKV scores against a plain double computation, and the rules of its edges.
#include "kernels/ref/window_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/host_kv.h"

namespace kvern::ref {
namespace {

using support::HostKv;

constexpr int64_t kTokens = 30;
constexpr int64_t kWindow = 4;
constexpr int64_t kPrefix = kTokens - kWindow;
constexpr int64_t kHeadDim = 16;
constexpr int64_t kGroup = 2;

struct Problem {
  HostKv keys = support::RandomKv({.tokens = kTokens, .head_dim = kHeadDim}, /*seed=*/1);
  std::vector<float> queries = support::RandomFloats(kGroup * kWindow * kHeadDim, /*seed=*/2);
  WindowAttentionArgs args;

  Problem() {
    args.keys = keys.refs();
    args.queries =
        DenseView(static_cast<const float*>(queries.data()), 1, kGroup, kWindow, kHeadDim);
  }
  std::vector<float> Scores() const {
    std::vector<float> scores(kTokens);
    EXPECT_TRUE(WindowAttention(nullptr, args, DenseView(scores.data(), 1, 1, kTokens)).ok());
    return scores;
  }
  // Mean attention of one query head to the prefix.
  std::vector<double> Attention(int64_t g) const {
    std::vector<double> mean(kPrefix, 0.0);
    for (int64_t i = 0; i < kWindow; ++i) {
      std::vector<double> weights;
      double total = 0;
      for (int64_t token = 0; token <= kPrefix + i; ++token) {
        double dot = 0;
        for (int64_t d = 0; d < kHeadDim; ++d) {
          dot += double{queries[(g * kWindow + i) * kHeadDim + d]} * keys.Get(0, 0, token, d);
        }
        weights.push_back(std::exp(dot / std::sqrt(double{kHeadDim})));
        total += weights.back();
      }
      for (int64_t token = 0; token < kPrefix; ++token) {
        mean[token] += weights[token] / total / kWindow;
      }
    }
    return mean;
  }
  double Pooled(int64_t g, int64_t token) const {
    const std::vector<double> row = Attention(g);
    double sum = 0;
    double largest = 0;
    for (int64_t near = token - 2; near <= token + 2; ++near) {
      if (near < 0 || near >= kPrefix) continue;
      sum += row[near];
      largest = std::max(largest, row[near]);
    }
    return args.pool == PoolKind::kAverage ? sum / 5 : largest;
  }
};

TEST(WindowAttention, MatchesItsDefinitionWithAveragePoolAndMean) {
  const Problem problem;
  const std::vector<float> scores = problem.Scores();
  for (int64_t token = 0; token < kPrefix; ++token) {
    EXPECT_NEAR(scores[token], (problem.Pooled(0, token) + problem.Pooled(1, token)) / 2, 1e-7);
  }
}

TEST(WindowAttention, MatchesItsDefinitionWithMaximaOfBothKinds) {
  Problem problem;
  problem.args.pool = PoolKind::kMax;
  problem.args.group = GroupReduce::kMax;
  const std::vector<float> scores = problem.Scores();
  for (int64_t token = 0; token < kPrefix; ++token) {
    EXPECT_NEAR(scores[token], std::max(problem.Pooled(0, token), problem.Pooled(1, token)), 1e-7);
  }
}

TEST(WindowAttention, GivesTheWindowItselfNoScore) {
  const std::vector<float> scores = Problem().Scores();
  for (int64_t token = kPrefix; token < kTokens; ++token) EXPECT_TRUE(std::isnan(scores[token]));
}

TEST(WindowAttention, GivesNoScoresWhenTheWindowCoversTheSequence) {
  Problem problem;
  const std::vector<float> queries = support::RandomFloats(kGroup * kTokens * kHeadDim, 3);
  problem.args.queries = DenseView(queries.data(), 1, kGroup, kTokens, kHeadDim);
  for (const float score : problem.Scores()) EXPECT_TRUE(std::isnan(score));
}

TEST(WindowAttention, SharesAttentionAmongFiniteKeysOnly) {
  Problem problem;
  problem.args.pool_width = 1;
  problem.keys.Set(0, 0, 3, 0, std::numeric_limits<float>::quiet_NaN());
  const std::vector<float> scores = problem.Scores();
  double total = 0;
  for (int64_t token = 0; token < kPrefix; ++token) {
    EXPECT_EQ(std::isnan(scores[token]), token == 3) << token;
    if (token != 3) total += scores[token];
  }
  EXPECT_GT(total, 0.5);
  EXPECT_LT(total, 1.0);
}

}  // namespace
}  // namespace kvern::ref
