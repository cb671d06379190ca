// KeyDiff, MeanKey and RowNorms against plain double computations.
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/ref/key_diff.h"
#include "kernels/ref/mean_key.h"
#include "kernels/ref/row_norms.h"
#include "tests/support/host_kv.h"

namespace kvern::ref {
namespace {

using support::HostKv;
using support::HostKvSpec;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> KeyDiffScores(const HostKv& keys, const std::vector<uint8_t>& alive,
                                 const RotationTable* unrotate) {
  const HostKvSpec& spec = keys.spec();
  std::vector<float> scores(spec.layers * spec.kv_heads * spec.tokens);
  const KeyDiffArgs args = {
      .keys = keys.refs(), .unrotate = unrotate, .alive = support::MaskOf(spec, alive)};
  const ScoreView view = DenseView(scores.data(), spec.layers, spec.kv_heads, spec.tokens);
  EXPECT_TRUE(KeyDiff(nullptr, args, view).ok());
  return scores;
}

TEST(KeyDiff, IsTheNegativeCosineWithTheMeanUnitKey) {
  const HostKvSpec spec = {.tokens = 300, .head_dim = 24};
  const HostKv keys = support::RandomKv(spec, /*seed=*/1);
  std::vector<uint8_t> alive(spec.tokens, 1);
  alive[4] = 0;
  std::vector<double> anchor(spec.head_dim, 0.0);
  const auto dot = [&](int64_t a, auto other) {
    double sum = 0;
    for (int64_t d = 0; d < spec.head_dim; ++d) sum += keys.Get(0, 0, a, d) * other(d);
    return sum;
  };
  const auto norm = [&](int64_t token) {
    return std::sqrt(dot(token, [&](int64_t d) { return double{keys.Get(0, 0, token, d)}; }));
  };
  for (int64_t token = 0; token < spec.tokens; ++token) {
    for (int64_t d = 0; d < spec.head_dim && alive[token] != 0; ++d) {
      anchor[d] += keys.Get(0, 0, token, d) / norm(token);
    }
  }
  double anchor_square = 0;
  for (const double x : anchor) anchor_square += x * x;
  const std::vector<float> scores = KeyDiffScores(keys, alive, nullptr);
  for (int64_t token = 0; token < spec.tokens; ++token) {
    const double cosine =
        dot(token, [&](int64_t d) { return anchor[d]; }) / norm(token) / std::sqrt(anchor_square);
    EXPECT_NEAR(scores[token], -cosine, 1e-6) << token;
  }
}

// `keys` turned by the angles of their tokens, as a cache holds them.
HostKv Rotated(const HostKv& keys, const RotationTable& table) {
  HostKv rotated(keys.spec());
  for (int64_t token = 0; token < keys.spec().tokens; ++token) {
    for (int32_t band = 0; band < table.bands; ++band) {
      const bool half = table.layout == RopeLayout::kHalf;
      const int64_t at_re = half ? band : 2 * band;
      const int64_t at_im = half ? band + table.bands : 2 * band + 1;
      const float re = keys.Get(0, 0, token, at_re);
      const float im = keys.Get(0, 0, token, at_im);
      const float c = table.cosine[token * table.bands + band];
      const float s = table.sine[token * table.bands + band];
      rotated.Set(0, 0, token, at_re, re * c - im * s);
      rotated.Set(0, 0, token, at_im, re * s + im * c);
    }
  }
  return rotated;
}

TEST(KeyDiff, UndoesTheRotationWhenGivenItsTable) {
  const HostKvSpec spec = {.dtype = DType::kF32, .tokens = 70, .head_dim = 16};
  const HostKv keys = support::RandomKv(spec, /*seed=*/2);
  const std::vector<uint8_t> alive(spec.tokens, 1);
  const std::vector<float> want = KeyDiffScores(keys, alive, nullptr);
  for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
    const RotationTable table = support::RotationOf(layout, 8, spec.tokens);
    const std::vector<float> got = KeyDiffScores(Rotated(keys, table), alive, &table);
    for (int64_t token = 0; token < spec.tokens; ++token) {
      EXPECT_NEAR(got[token], want[token], 1e-6);
    }
  }
}

TEST(KeyDiff, GivesAKeyThatIsNotFiniteNoScoreAndNoVote) {
  const HostKvSpec spec = {.dtype = DType::kF32, .tokens = 20, .head_dim = 16};
  HostKv keys = support::RandomKv(spec, /*seed=*/3);
  std::vector<uint8_t> alive(spec.tokens, 1);
  alive[6] = 0;
  const std::vector<float> without = KeyDiffScores(keys, alive, nullptr);
  alive[6] = 1;
  keys.Set(0, 0, 6, 1, kNaN);
  const std::vector<float> scores = KeyDiffScores(keys, alive, nullptr);
  EXPECT_TRUE(std::isnan(scores[6]));
  for (int64_t token = 0; token < spec.tokens; ++token) {
    if (token == 6) continue;
    EXPECT_EQ(scores[token], without[token]) << token;
  }
}

TEST(KeyDiff, ScoresAZeroKeyAsZero) {
  const HostKvSpec spec = {.tokens = 9, .head_dim = 8};
  HostKv keys = support::RandomKv(spec, /*seed=*/4);
  for (int64_t d = 0; d < 8; ++d) keys.Set(0, 0, 2, d, 0.0f);
  EXPECT_EQ(KeyDiffScores(keys, std::vector<uint8_t>(9, 1), nullptr)[2], 0.0f);
}

TEST(MeanKey, AveragesTheUnrotatedFiniteKeysThatCount) {
  const HostKvSpec spec = {.dtype = DType::kF32, .tokens = 600, .head_dim = 16};
  HostKv keys = support::RandomKv(spec, /*seed=*/5);
  std::vector<uint8_t> counted(spec.tokens, 1);
  for (int64_t sink = 0; sink < 4; ++sink) counted[sink] = 0;
  std::vector<double> want(16, 0.0);
  for (int64_t token = 4; token < spec.tokens; ++token) {
    for (int64_t d = 0; d < 16 && token != 77; ++d) want[d] += keys.Get(0, 0, token, d) / 595.0;
  }
  keys.Set(0, 0, 77, 3, kNaN);
  const RotationTable table = support::RotationOf(RopeLayout::kHalf, 8, spec.tokens);
  HostKv rotated = Rotated(keys, table);
  std::vector<Float16> mean(16);
  const MeanKeyArgs args = {
      .keys = rotated.refs(), .rotation = &table, .counted = support::MaskOf(spec, counted)};
  ASSERT_TRUE(MeanKey(nullptr, args, DenseView(mean.data(), 1, 1, 16)).ok());
  for (int64_t d = 0; d < 16; ++d) EXPECT_NEAR(ToFloat(mean[d]), want[d], 1e-4) << d;
}

TEST(MeanKey, IsZeroWhenNothingCounts) {
  const HostKvSpec spec = {.tokens = 5, .head_dim = 8};
  const HostKv keys = support::RandomKv(spec, /*seed=*/6);
  const std::vector<uint8_t> counted(5, 0);
  std::vector<Float16> mean(8, Float16{1});
  const MeanKeyArgs args = {.keys = keys.refs(), .counted = support::MaskOf(spec, counted)};
  ASSERT_TRUE(MeanKey(nullptr, args, DenseView(mean.data(), 1, 1, 8)).ok());
  for (const Float16 x : mean) EXPECT_EQ(x.bits, 0);
}

TEST(RowNorms, MatchesDoubleAndMarksTokensThatAHeadDoesNotHold) {
  const HostKvSpec spec = {.kv_heads = 2, .tokens = 20, .head_dim = 40, .lengths = {20, 13}};
  HostKv rows = support::RandomKv(spec, /*seed=*/7);
  rows.Set(0, 0, 3, 0, kNaN);
  std::vector<float> norms(40);
  ASSERT_TRUE(RowNorms(nullptr, rows.refs(), DenseView(norms.data(), 1, 2, 20)).ok());
  for (int64_t token = 0; token < 20; ++token) {
    double square = 0;
    for (int64_t d = 0; d < 40; ++d) square += std::pow(double{rows.Get(0, 0, token, d)}, 2);
    if (token == 3) {
      EXPECT_TRUE(std::isnan(norms[token]));
    } else {
      EXPECT_NEAR(norms[token], std::sqrt(square), 1e-6 * std::sqrt(square));
    }
    EXPECT_EQ(std::isnan(norms[20 + token]), token >= 13) << token;
  }
}

}  // namespace
}  // namespace kvern::ref
