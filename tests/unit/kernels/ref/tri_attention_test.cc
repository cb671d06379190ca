// The hand-computed values of retention.md (Golden A) and the invariants of section 15.
#include "kernels/ref/tri_attention.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/host_kv.h"

namespace kvern::ref {
namespace {

using support::HostKv;
using support::HostKvSpec;
using Complex = std::complex<double>;

// Golden A: two bands, head_dim padded to 8 by coordinates that are not rotated.
class GoldenA : public ::testing::Test {
 protected:
  static constexpr double kOmega[] = {1.0, 0.01};
  static constexpr double kMeanModulus[] = {1.5, 2.25};
  static constexpr int kRound = 100;

  GoldenA() : keys_({.dtype = DType::kF32, .tokens = 1, .head_dim = 8}) {
    const float key[] = {-.260831107f, 1.774250833f, -1.087183119f, .956312700f, 9, 9, 9, 9};
    for (int d = 0; d < 8; ++d) keys_.Set(0, 0, 0, d, key[d]);
    for (int f = 0; f < 2; ++f) {
      w_.push_back(static_cast<float>(kMeanModulus[f] - std::abs(kMeanQuery[f])));
    }
  }

  // u of one column: the mean query turned by t + offset.
  void AddColumn(const std::vector<int>& offsets) {
    std::vector<Complex> u(2);
    for (int f = 0; f < 2; ++f) {
      for (const int offset : offsets) {
        u[f] += kMeanQuery[f] * std::polar(1.0, (kRound + offset) * kOmega[f]);
      }
      u[f] /= static_cast<double>(offsets.size());
    }
    for (const Complex& band : u) u_.push_back(static_cast<float>(band.real()));
    for (const Complex& band : u) u_.push_back(static_cast<float>(band.imag()));
  }

  float Score(int32_t columns) {
    const uint8_t candidate = 1;
    TriAttentionArgs args;
    args.keys = keys_.refs();
    args.bands = 2;
    args.q_heads = 1;
    args.columns = columns;
    args.u = DenseView(static_cast<const float*>(u_.data()), 1, 1, columns, 4);
    args.w = DenseView(static_cast<const float*>(w_.data()), 1, 1, 2);
    args.candidates = DenseView(&candidate, 1, 1, 1);
    args.zscore = false;
    float score = 0;
    EXPECT_TRUE(TriAttention(nullptr, args, DenseView(&score, 1, 1, 1)).ok());
    return score;
  }

  static std::vector<int> Offsets() {
    std::vector<int> offsets;
    for (int offset = 1; offset <= 65536; offset *= 2) offsets.push_back(offset);
    return offsets;
  }

  const Complex kMeanQuery[2] = {{1.0, 0.5}, {-0.25, 2.0}};
  HostKv keys_;
  std::vector<float> u_;
  std::vector<float> w_;
};

TEST_F(GoldenA, GivesTheMeanOverOffsets) {
  AddColumn(Offsets());
  EXPECT_NEAR(Score(1), -1.073724863832, 1e-6);
}

TEST_F(GoldenA, GivesTheMaximumOverOffsets) {
  for (const int offset : Offsets()) AddColumn({offset});
  EXPECT_NEAR(Score(17), 4.918905279979, 1e-6);
}

// One layer, one kv_head, `group` query heads, random u and w.
struct Problem {
  HostKv keys;
  std::vector<float> u;
  std::vector<float> w;
  std::vector<uint8_t> candidates;
  TriAttentionArgs args;

  Problem(const HostKvSpec& spec, int32_t group)
      : keys(support::RandomKv(spec, /*seed=*/1)),
        u(support::RandomFloats(group * spec.head_dim, /*seed=*/2)),
        w(support::RandomFloats(group * spec.head_dim / 2, /*seed=*/3)),
        candidates(spec.tokens, 1) {
    args.keys = keys.refs();
    args.bands = static_cast<int32_t>(spec.head_dim / 2);
    args.q_heads = group;
    args.u = DenseView(static_cast<const float*>(u.data()), 1, group, 1, spec.head_dim);
    args.w = DenseView(static_cast<const float*>(w.data()), 1, group, spec.head_dim / 2);
    args.candidates = support::MaskOf(spec, candidates);
  }
  std::vector<float> Scores() const {
    std::vector<float> scores(keys.spec().tokens);
    const int64_t tokens = keys.spec().tokens;
    EXPECT_TRUE(TriAttention(nullptr, args, DenseView(scores.data(), 1, 1, tokens)).ok());
    return scores;
  }
};

constexpr HostKvSpec ShapeOf(int64_t tokens) {
  return {.dtype = DType::kF32, .tokens = tokens, .head_dim = 32};
}

TEST(TriAttention, StandardisesOverCandidatesOnly) {
  Problem problem(ShapeOf(300), /*group=*/1);
  const std::vector<float> before = problem.Scores();
  problem.candidates[7] = 0;
  const std::vector<float> without = problem.Scores();
  for (int64_t d = 0; d < 32; ++d) problem.keys.Set(0, 0, 7, d, 1000.0f);
  const std::vector<float> extreme = problem.Scores();
  EXPECT_NE(before[8], without[8]);
  for (int64_t token = 0; token < 300; ++token) {
    if (token == 7) continue;
    EXPECT_EQ(without[token], extreme[token]) << token;
  }
}

TEST(TriAttention, GivesATokenThatIsNotFiniteNoScoreAndLeavesTheOthers) {
  Problem problem(ShapeOf(40), /*group=*/2);
  problem.candidates[0] = 0;
  const std::vector<float> before = problem.Scores();
  problem.keys.Set(0, 0, 0, 4, std::numeric_limits<float>::quiet_NaN());
  const std::vector<float> after = problem.Scores();
  EXPECT_TRUE(std::isnan(after[0]));
  for (int64_t token = 1; token < 40; ++token) EXPECT_EQ(after[token], before[token]) << token;
}

TEST(TriAttention, GivesZeroWhereKeysAreAllEqual) {
  Problem problem(ShapeOf(50), /*group=*/2);
  for (int64_t token = 0; token < 50; ++token) {
    for (int64_t d = 0; d < 32; ++d) problem.keys.Set(0, 0, token, d, 0.25f * d);
  }
  for (const float score : problem.Scores()) EXPECT_EQ(score, 0.0f);
}

TEST(TriAttention, TiesEqualKeysExactly) {
  Problem problem(ShapeOf(60), /*group=*/3);
  for (int64_t d = 0; d < 32; ++d) problem.keys.Set(0, 0, 55, d, problem.keys.Get(0, 0, 3, d));
  const std::vector<float> scores = problem.Scores();
  EXPECT_EQ(scores[3], scores[55]);
}

TEST(TriAttention, KeepsItsDigitsUnderALargeKeyBias) {
  Problem problem(ShapeOf(128), /*group=*/1);
  std::vector<float>& w = problem.w;
  std::fill(w.begin(), w.end(), 0.0f);
  const std::vector<float> unbiased = problem.Scores();
  // A bias of 4096 with keys on a grid that f32 still holds: only the arithmetic can lose digits.
  for (int64_t token = 0; token < 128; ++token) {
    for (int64_t d = 0; d < 32; ++d) {
      const float key = std::round(problem.keys.Get(0, 0, token, d) * 512) / 512;
      problem.keys.Set(0, 0, token, d, key);
    }
  }
  const std::vector<float> want = problem.Scores();
  for (int64_t token = 0; token < 128; ++token) {
    for (int64_t d = 0; d < 32; ++d) {
      problem.keys.Set(0, 0, token, d, problem.keys.Get(0, 0, token, d) + 4096.0f);
    }
  }
  const std::vector<float> got = problem.Scores();
  for (int64_t token = 0; token < 128; ++token) EXPECT_NEAR(got[token], want[token], 3e-6);
  EXPECT_NEAR(unbiased[5], want[5], 1e-2);
}

TEST(TriAttention, ReducesTheGroupToItsLargestStandardScore) {
  Problem both(ShapeOf(64), /*group=*/2);
  const std::vector<float> largest = both.Scores();
  std::vector<std::vector<float>> single;
  for (int q_head = 0; q_head < 2; ++q_head) {
    Problem one(ShapeOf(64), /*group=*/2);
    one.args.q_heads = 1;
    one.args.u.data += q_head * 32;
    one.args.w.data += q_head * 16;
    single.push_back(one.Scores());
  }
  for (int64_t token = 0; token < 64; ++token) {
    EXPECT_EQ(largest[token], std::max(single[0][token], single[1][token]));
  }
}

TEST(TriAttention, IgnoresBlockSizeOrderAndStrides) {
  HostKvSpec spec = ShapeOf(100);
  const std::vector<float> want = Problem(spec, /*group=*/2).Scores();
  for (const int32_t block_tokens : {1, 16, 32, 256}) {
    for (const auto layout : {support::TileLayout::kTokenMajor, support::TileLayout::kColumns}) {
      spec.block_tokens = block_tokens;
      spec.layout = layout;
      spec.order = support::BlockOrder::kShuffled;
      EXPECT_EQ(Problem(spec, /*group=*/2).Scores(), want) << support::Describe(spec);
    }
  }
}

}  // namespace
}  // namespace kvern::ref
