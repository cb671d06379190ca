// Expected attention against its definition with explicit rotation matrices.
#include <cmath>

#include "gtest/gtest.h"
#include "server/pipeline/scorers/moment_basis.h"
#include "tests/unit/server/pipeline/live_sequence.h"

namespace kvern::pipeline {
namespace {

constexpr int64_t kDim = 16;
constexpr int64_t kTokens = 40;
constexpr int64_t kSinks = 4;
constexpr int64_t kFuture = 32;

using Matrix = std::vector<std::vector<double>>;

Matrix Product(const Matrix& a, const Matrix& b) {
  Matrix c(kDim, std::vector<double>(kDim, 0.0));
  for (int64_t i = 0; i < kDim; ++i) {
    for (int64_t j = 0; j < kDim; ++j) {
      for (int64_t m = 0; m < kDim; ++m) c[i][j] += a[i][m] * b[m][j];
    }
  }
  return c;
}
Matrix Transposed(const Matrix& a) {
  Matrix b = a;
  for (int64_t i = 0; i < kDim; ++i) {
    for (int64_t j = 0; j < kDim; ++j) b[i][j] = a[j][i];
  }
  return b;
}

// Mean over the future positions of sigma * R.
Matrix MeanRotation(const RopeSpec& rope, int64_t first) {
  Matrix mean(kDim, std::vector<double>(kDim, 0.0));
  const bool half = rope.layout == RopeLayout::kHalf;
  const double weight = rope.attention_scaling / kFuture;
  for (int64_t position = first; position < first + kFuture; ++position) {
    for (int64_t band = 0; band < rope.Bands(); ++band) {
      const int64_t a = half ? band : 2 * band, b = half ? band + rope.Bands() : 2 * band + 1;
      const double angle = double{rope.inv_freq[band]} * static_cast<double>(position);
      mean[a][a] += weight * std::cos(angle);
      mean[b][b] += weight * std::cos(angle);
      mean[a][b] -= weight * std::sin(angle);
      mean[b][a] += weight * std::sin(angle);
    }
  }
  return mean;
}

struct Moments {
  std::vector<double> mean;
  Matrix covariance;
};

Moments Rotated(LiveSequence& sequence, int64_t row) {
  const QueryMoments& plain = *sequence.calibrations().moments;
  const Matrix rotation = MeanRotation(sequence.model().rope, sequence.input().logical_tokens);
  Moments out{std::vector<double>(kDim, 0.0), Matrix(kDim, std::vector<double>(kDim))};
  for (int64_t i = 0; i < kDim; ++i) {
    for (int64_t j = 0; j < kDim; ++j) {
      out.mean[i] += rotation[i][j] * plain.mean[row * kDim + j];
      out.covariance[i][j] = plain.cov[(row * kDim + i) * kDim + j];
    }
  }
  out.covariance = Product(Product(rotation, out.covariance), Transposed(rotation));
  return out;
}

LiveSequence& Prepare(LiveSequence& sequence, RopeLayout layout) {
  sequence.model().rope.layout = layout;
  sequence.model().rope.attention_scaling = 1.2;
  sequence.input().logical_tokens = 777;
  return sequence;
}

support::HostKvSpec Spec() {
  return F32({.layers = 2, .kv_heads = 1, .tokens = kTokens, .head_dim = kDim});
}

// softmax over tokens after the sinks, of one query head.
std::vector<double> Attention(LiveSequence& sequence, int64_t layer, int64_t q_head) {
  const Moments moments = Rotated(sequence, layer * sequence.model().q_heads + q_head);
  std::vector<double> attention(kTokens, 0.0);
  double sum = 0;
  for (int64_t token = kSinks; token < kTokens; ++token) {
    double linear = 0, square = 0;
    for (int64_t i = 0; i < kDim; ++i) {
      const double k = sequence.keys().Get(layer, 0, token, i);
      linear += k * moments.mean[i];
      for (int64_t j = 0; j < kDim; ++j) {
        square += k * moments.covariance[i][j] * sequence.keys().Get(layer, 0, token, j);
      }
    }
    attention[token] = std::exp(linear / std::sqrt(double{kDim}) + square / (2 * kDim));
    sum += attention[token];
  }
  for (double& share : attention) share /= sum;
  return attention;
}

double ValueNorm(LiveSequence& sequence, int64_t layer, int64_t token) {
  double sum = 0;
  for (int64_t d = 0; d < kDim; ++d) sum += std::pow(sequence.values().Get(layer, 0, token, d), 2);
  return std::sqrt(sum);
}

class ExpectedAttention : public testing::TestWithParam<RopeLayout> {};

TEST_P(ExpectedAttention, MatchesTheDefinitionWithExplicitRotations) {
  LiveSequence sequence(Spec());
  Prepare(sequence, GetParam());
  const auto scores = ScoresOf(*ScorerOf("expected_attention:future=32,epsilon=0.01"), sequence);
  ASSERT_TRUE(scores.ok()) << scores.status().ToString();
  for (int64_t layer = 0; layer < 2; ++layer) {
    const auto first = Attention(sequence, layer, 0), second = Attention(sequence, layer, 1);
    for (int64_t token = 0; token < kTokens; ++token) {
      const float got = (*scores)[layer * kTokens + token];
      if (token < kSinks) {
        EXPECT_TRUE(std::isnan(got));
        continue;
      }
      const double want =
          ((first[token] + second[token]) / 2 + 0.01) * ValueNorm(sequence, layer, token);
      EXPECT_NEAR(got / want, 1.0, 1e-5) << layer << " " << token;
    }
  }
}

TEST_P(ExpectedAttention, KeepsTheDiagonalOfTheCovarianceAtEveryRankAndPosition) {
  LiveSequence sequence(Spec());
  Prepare(sequence, GetParam());
  for (const int64_t rank : {1, 4, 8}) {
    const auto basis = MomentBasisOf(sequence.input(), {.rank = rank, .future = kFuture});
    ASSERT_TRUE(basis.ok()) << basis.status().ToString();
    const MomentBasis turned = TurnedTo(**basis, sequence.model().rope, 777);
    for (int64_t row = 0; row < turned.rows; ++row) {
      const Moments want = Rotated(sequence, row);
      for (int64_t d = 0; d < kDim; ++d) {
        double diagonal = turned.rest[row * kDim + d];
        for (int64_t j = 0; j < rank; ++j) {
          diagonal += std::pow(turned.factors[(row * rank + j) * kDim + d], 2);
        }
        EXPECT_NEAR(turned.mean[row * kDim + d], want.mean[d], 1e-10);
        EXPECT_NEAR(diagonal, want.covariance[d][d], 1e-9) << rank << " " << row << " " << d;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, ExpectedAttention,
                         testing::Values(RopeLayout::kHalf, RopeLayout::kInterleaved));

std::vector<float> Scores(LiveSequence& sequence, const std::string& words) {
  const auto scores = ScoresOf(*ScorerOf(words), sequence);
  EXPECT_TRUE(scores.ok()) << scores.status().ToString();
  return scores.value_or(std::vector<float>(kTokens * 2));
}

TEST(ExpectedAttentionScorer, GivesTheFullFormWhenTheRankIsTheWholeHead) {
  LiveSequence sequence(Spec());
  Prepare(sequence, RopeLayout::kHalf);
  const auto full = Scores(sequence, "expected_attention:future=32");
  const auto ranked = Scores(sequence, "expected_attention:future=32,rank=16");
  const auto more = Scores(sequence, "expected_attention:future=32,rank=32");
  for (int64_t at = kSinks; at < kTokens; ++at) {
    EXPECT_NEAR(ranked[at] / full[at], 1.0, 1e-5);
    EXPECT_EQ(more[at], ranked[at]);
  }
}

TEST(ExpectedAttentionScorer, IsTheMeanTermAloneWithoutCovariance) {
  LiveSequence with(Spec()), without(Spec());
  auto moments = std::make_shared<QueryMoments>(*without.calibrations().moments);
  std::fill(moments->cov.begin(), moments->cov.end(), 0.0f);
  without.calibrations().moments = moments;
  const auto full = Scores(without, "expected_attention");
  EXPECT_NE(full[10], Scores(with, "expected_attention")[10]);
  const auto ranked = Scores(without, "expected_attention:rank=8");
  // f64 against f32 dots.
  for (int64_t at = kSinks; at < kTokens; ++at) EXPECT_NEAR(ranked[at] / full[at], 1.0, 1e-5);
}

TEST(ExpectedAttentionScorer, GivesTheLogarithmOfItsScoreWithLog) {
  LiveSequence sequence(Spec());
  const auto plain = Scores(sequence, "expected_attention:rank=8");
  const auto log = Scores(sequence, "expected_attention:rank=8,log");
  for (int64_t at = kSinks; at < kTokens; ++at) EXPECT_NEAR(log[at], std::log(plain[at]), 1e-5);
}

TEST(ExpectedAttentionScorer, RemembersACalibrationWithoutChangingTheAnswer) {
  LiveSequence unnamed(Spec()), named(Spec()), other(Spec(), /*seed=*/99);
  named.calibrations().cache_key = "sha256:one";
  other.calibrations().cache_key = "sha256:two";
  const std::string words = "expected_attention:rank=8";
  const auto want = Scores(unnamed, words);
  const auto want_other = Scores(other, words);
  for (int round = 0; round < 2; ++round) {
    const auto got = Scores(named, words);
    for (int64_t at = kSinks; at < kTokens; ++at) EXPECT_EQ(got[at], want[at]) << round;
  }
  named.input().logical_tokens = 100000;
  unnamed.input().logical_tokens = 100000;
  EXPECT_EQ(Scores(named, words)[20], Scores(unnamed, words)[20]);
  EXPECT_EQ(Scores(other, words)[20], want_other[20]);
}

TEST(ExpectedAttentionScorer, RefusesLogWithAnEpsilonAndMomentsThatAreNotFinite) {
  EXPECT_FALSE(MakeScorer(ParseStageSpec("expected_attention:log,epsilon=0.01").value()).ok());
  LiveSequence sequence(Spec());
  auto moments = std::make_shared<QueryMoments>(*sequence.calibrations().moments);
  moments->cov[5] = std::nanf("");
  sequence.calibrations().moments = moments;
  for (const char* words : {"expected_attention", "expected_attention:rank=8"}) {
    const auto scores = ScoresOf(*ScorerOf(words), sequence);
    ASSERT_FALSE(scores.ok());
    EXPECT_EQ(scores.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace kvern::pipeline
