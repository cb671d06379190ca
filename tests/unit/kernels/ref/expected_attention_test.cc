// Expected attention against a plain double computation of its definition.
#include "kernels/ref/expected_attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/host_kv.h"

namespace kvern::ref {
namespace {

using support::HostKv;

constexpr int64_t kTokens = 50;
constexpr int64_t kHeadDim = 16;
constexpr int32_t kGroup = 3;
constexpr int32_t kRank = 2;

struct Problem {
  HostKv keys = support::RandomKv({.tokens = kTokens, .head_dim = kHeadDim}, /*seed=*/1);
  HostKv values = support::RandomKv({.tokens = kTokens, .head_dim = kHeadDim}, /*seed=*/2);
  std::vector<double> linear = support::RandomDoubles(kGroup * kHeadDim, /*seed=*/3);
  std::vector<double> factors = support::RandomDoubles(kGroup * kRank * kHeadDim, /*seed=*/4);
  std::vector<double> diagonal = support::RandomDoubles(kGroup * kHeadDim, /*seed=*/5);
  std::vector<double> full;
  std::vector<uint8_t> counted = std::vector<uint8_t>(kTokens, 1);
  ExpectedAttentionArgs args;

  Problem() {
    for (double& factor : factors) factor *= 0.2;
    for (double& weight : diagonal) weight *= 0.1;
    counted[0] = counted[1] = 0;
    args.keys = keys.refs();
    args.values = values.refs();
    args.q_heads = kGroup;
    args.rank = kRank;
    args.linear = DenseView(static_cast<const double*>(linear.data()), 1, kGroup, kHeadDim);
    args.factors =
        DenseView(static_cast<const double*>(factors.data()), 1, kGroup, kRank, kHeadDim);
    args.diagonal = DenseView(static_cast<const double*>(diagonal.data()), 1, kGroup, kHeadDim);
    args.counted = DenseView(static_cast<const uint8_t*>(counted.data()), 1, 1, kTokens);
  }

  // The same quadratic form as one matrix per query head.
  void UseFull() {
    full.assign(kGroup * kHeadDim * kHeadDim, 0.0);
    for (int64_t g = 0; g < kGroup; ++g) {
      for (int64_t i = 0; i < kHeadDim; ++i) {
        for (int64_t j = 0; j < kHeadDim; ++j) Entry(g, i, j) = Covariance(g, i, j);
      }
    }
    args.full = true;
    args.rank = kHeadDim;
    args.diagonal = {};
    args.factors =
        DenseView(static_cast<const double*>(full.data()), 1, kGroup, kHeadDim, kHeadDim);
  }
  double& Entry(int64_t g, int64_t i, int64_t j) { return full[(g * kHeadDim + i) * kHeadDim + j]; }
  double Covariance(int64_t g, int64_t i, int64_t j) const {
    double sum = i == j ? diagonal[g * kHeadDim + i] : 0.0;
    for (int64_t r = 0; r < kRank; ++r) {
      const double* factor = &factors[(g * kRank + r) * kHeadDim];
      sum += factor[i] * factor[j];
    }
    return sum;
  }

  std::vector<float> Scores() const {
    std::vector<float> scores(kTokens);
    EXPECT_TRUE(ExpectedAttention(nullptr, args, DenseView(scores.data(), 1, 1, kTokens)).ok());
    return scores;
  }

  // (mean over the group of softmax, epsilon) * |v|, in plain double.
  std::vector<double> Want() const {
    std::vector<double> mean(kTokens, 0.0);
    for (int64_t g = 0; g < kGroup; ++g) {
      std::vector<double> weights(kTokens, 0.0);
      double total = 0;
      for (int64_t token = 0; token < kTokens; ++token) {
        if (counted[token] == 0) continue;
        weights[token] = std::exp(Logit(g, token));
        total += weights[token];
      }
      for (int64_t token = 0; token < kTokens; ++token) mean[token] += weights[token] / total;
    }
    for (int64_t token = 0; token < kTokens; ++token) {
      double square = 0;
      for (int64_t d = 0; d < kHeadDim; ++d) square += std::pow(values.Get(0, 0, token, d), 2);
      mean[token] = (mean[token] / kGroup + args.epsilon) * std::sqrt(square);
    }
    return mean;
  }
  double Logit(int64_t g, int64_t token) const {
    double logit = 0;
    for (int64_t i = 0; i < kHeadDim; ++i) {
      const double k = keys.Get(0, 0, token, i);
      logit += linear[g * kHeadDim + i] * k;
      for (int64_t j = 0; j < kHeadDim; ++j) {
        logit += k * Covariance(g, i, j) * keys.Get(0, 0, token, j);
      }
    }
    return logit;
  }
};

TEST(ExpectedAttention, MatchesItsDefinition) {
  Problem problem;
  problem.args.epsilon = 0.01f;
  const std::vector<float> scores = problem.Scores();
  const std::vector<double> want = problem.Want();
  for (int64_t token = 0; token < kTokens; ++token) {
    if (problem.counted[token] == 0) {
      EXPECT_TRUE(std::isnan(scores[token])) << token;
    } else {
      EXPECT_NEAR(scores[token], want[token], 1e-6 * want[token]) << token;
    }
  }
}

// Dots of the low-rank form are f32: logits near 10 carry their rounding into the exponent.
constexpr double kF32Logits = 4e-6;

TEST(ExpectedAttention, GivesTheSameFromTheFullMatrix) {
  Problem low_rank;
  Problem full;
  full.UseFull();
  const std::vector<float> want = low_rank.Scores();
  const std::vector<float> got = full.Scores();
  for (int64_t token = 2; token < kTokens; ++token) {
    EXPECT_NEAR(got[token], want[token], kF32Logits * want[token]) << token;
  }
}

// A bias that all keys share makes logits of a million, of which nothing but differences count.
TEST(ExpectedAttention, KeepsTheDigitsOfKeysThatShareALargeBias) {
  Problem low_rank;
  Problem full;
  full.UseFull();
  for (Problem* problem : {&low_rank, &full}) {
    problem->args.log = true;
    for (int64_t token = 0; token < kTokens; ++token) {
      for (int64_t d = 0; d < 4; ++d) {
        const float own = problem->keys.Get(0, 0, token, d);
        problem->keys.Set(0, 0, token, d, own * 0.01f + 400.0f);
      }
    }
  }
  const std::vector<float> want = full.Scores();
  const std::vector<float> got = low_rank.Scores();
  for (int64_t token = 2; token < kTokens; ++token) {
    EXPECT_NEAR(got[token], want[token], kF32Logits * (10.0 + std::fabs(want[token]))) << token;
  }
}

TEST(ExpectedAttention, GivesTheLogarithmOfTheSame) {
  Problem plain;
  Problem in_log_space;
  in_log_space.args.log = true;
  const std::vector<float> want = plain.Scores();
  const std::vector<float> got = in_log_space.Scores();
  for (int64_t token = 2; token < kTokens; ++token) {
    EXPECT_NEAR(got[token], std::log(want[token]), 2e-6) << token;
  }
}

TEST(ExpectedAttention, KeepsTheLogarithmOfWhatUnderflows) {
  Problem problem;
  for (double& weight : problem.linear) weight *= 1000.0;
  problem.args.log = true;
  int64_t far_below = 0;
  for (int64_t token = 2; token < kTokens; ++token) {
    const float score = problem.Scores()[token];
    EXPECT_TRUE(std::isfinite(score)) << token;
    far_below += score < -800.0f ? 1 : 0;
  }
  EXPECT_GT(far_below, 0);
}

TEST(ExpectedAttention, FloorsTheLogarithmOfAZeroValue) {
  Problem problem;
  problem.args.log = true;
  for (int64_t d = 0; d < kHeadDim; ++d) problem.values.Set(0, 0, 9, d, 0.0f);
  const float with_floor = problem.Scores()[9];
  problem.args.value_norm = false;
  EXPECT_NEAR(with_floor - problem.Scores()[9], std::log(1e-30), 1e-4);
}

TEST(ExpectedAttention, LeavesOtherTokensAloneWhenAKeyOrAValueIsNotFinite) {
  Problem problem;
  problem.keys.Set(0, 0, 1, 3, std::numeric_limits<float>::quiet_NaN());
  const std::vector<float> want = Problem().Scores();
  // Token 1 is not counted, so nothing changes.
  const std::vector<float> got = problem.Scores();
  for (int64_t token = 2; token < kTokens; ++token) EXPECT_EQ(got[token], want[token]);

  problem.keys.Set(0, 0, 7, 3, std::numeric_limits<float>::quiet_NaN());
  problem.values.Set(0, 0, 8, 3, std::numeric_limits<float>::infinity());
  const std::vector<float> poisoned = problem.Scores();
  for (int64_t token = 2; token < kTokens; ++token) {
    EXPECT_EQ(std::isnan(poisoned[token]), token == 7 || token == 8) << token;
  }
}

}  // namespace
}  // namespace kvern::ref
