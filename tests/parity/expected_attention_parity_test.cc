// ExpectedAttention: every backend gives ref's bits, low-rank, full and in log space.
#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>

#include "tests/parity/parity.h"
#include "tests/parity/score_cohort.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

struct MomentInput {
  std::vector<double> linear;
  std::vector<double> factors;
  std::vector<double> diagonal;
  std::vector<uint8_t> counted;
  ExpectedAttentionArgs args;

  MomentInput(const HostKv& keys, const HostKv& values, int32_t group, int32_t rank,
              uint64_t seed = 21) {
    const HostKvSpec& spec = keys.spec();
    args.keys = keys.refs();
    args.values = values.refs();
    args.q_heads = static_cast<int32_t>(spec.kv_heads) * group;
    args.rank = rank;
    const int64_t rows = spec.layers * args.q_heads;
    linear = RandomDoubles(rows * spec.head_dim, seed);
    factors = RandomDoubles(rows * rank * spec.head_dim, seed + 1);
    for (double& factor : factors) factor *= 0.1;
    diagonal = RandomDoubles(rows * spec.head_dim, seed + 2);
    counted = RandomMask(spec, /*chance=*/0.9, seed + 3);
    args.linear = DenseView(static_cast<const double*>(linear.data()), spec.layers, args.q_heads,
                            spec.head_dim);
    args.factors = DenseView(static_cast<const double*>(factors.data()), spec.layers, args.q_heads,
                             rank, spec.head_dim);
    args.diagonal = DenseView(static_cast<const double*>(diagonal.data()), spec.layers,
                              args.q_heads, spec.head_dim);
    args.counted = MaskOf(spec, counted);
  }
};

void ExpectMomentParity(const HostKvSpec& spec, const ExpectedAttentionArgs& args) {
  ExpectScoreParity(
      spec.layers, spec.kv_heads, spec.tokens,
      [&](Backend& backend, ScoreView scores) { return backend.ExpectedAttention(args, scores); });
}

TEST(ExpectedAttentionParity, EveryBackendMatchesRefOnEveryLayout) {
  for (const HostKvSpec& spec : ParitySpecs()) {
    SCOPED_TRACE(Describe(spec));
    const HostKv keys = RandomKv(spec, /*seed=*/1);
    const HostKv values = RandomKv(spec, /*seed=*/2);
    MomentInput input(keys, values, /*group=*/3, /*rank=*/8);
    ExpectMomentParity(spec, input.args);
    input.args.log = true;
    ExpectMomentParity(spec, input.args);
    input.args.value_norm = false;
    ExpectMomentParity(spec, input.args);
  }
}

TEST(ExpectedAttentionParity, EveryBackendMatchesRefOnRanksZeroAndOne) {
  const HostKvSpec spec = {.layers = 2, .kv_heads = 2, .tokens = 90, .head_dim = 24};
  const HostKv keys = RandomKv(spec, /*seed=*/3);
  const HostKv values = RandomKv(spec, /*seed=*/4);
  for (const int32_t rank : {0, 1}) {
    MomentInput input(keys, values, /*group=*/1, rank);
    input.args.epsilon = 0.01f;
    ExpectMomentParity(spec, input.args);
  }
}

TEST(ExpectedAttentionParity, EveryBackendMatchesRefOnTheFullForm) {
  for (const int64_t head_dim : {8, 24, 64, 72}) {
    SCOPED_TRACE(head_dim);
    const HostKvSpec spec = {.kv_heads = 2, .tokens = 45, .head_dim = head_dim};
    const HostKv keys = RandomKv(spec, /*seed=*/5);
    const HostKv values = RandomKv(spec, /*seed=*/6);
    MomentInput input(keys, values, /*group=*/2, static_cast<int32_t>(head_dim));
    input.args.full = true;
    input.args.diagonal = {};
    ExpectMomentParity(spec, input.args);
  }
}

TEST(ExpectedAttentionParity, EveryBackendMatchesRefOnManyLongVectors) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const HostKvSpec spec = {.dtype = dtype, .kv_heads = 1, .tokens = 20, .head_dim = 1024};
    const HostKv keys = RandomKv(spec, /*seed=*/9);
    const HostKv values = RandomKv(spec, /*seed=*/10);
    const MomentInput input(keys, values, /*group=*/2, /*rank=*/13);
    ExpectMomentParity(spec, input.args);
  }
}

// Keys are turned to columns 32 tokens at a time, as pairs of coordinates, alone or through a copy;
// values end before the keys do.
TEST(ExpectedAttentionParity, EveryBackendMatchesRefOnShuffledBlocksAndGroupsOfEverySize) {
  for (const HostKvSpec& kind :
       {HostKvSpec{.head_dim = 128, .block_tokens = 16}, HostKvSpec{.head_dim = 48},
        HostKvSpec{.dtype = DType::kF16, .head_dim = 80, .block_tokens = 64},
        HostKvSpec{.head_dim = 64, .layout = TileLayout::kColumns}}) {
    HostKvSpec spec = kind;
    spec.kv_heads = 2;
    spec.tokens = 330;
    spec.order = BlockOrder::kShuffled;
    SCOPED_TRACE(Describe(spec));
    const HostKv keys = RandomKv(spec, /*seed=*/12);
    HostKvSpec shorter = spec;
    shorter.lengths = {330, 290};
    const HostKv values = RandomKv(shorter, /*seed=*/13);
    for (const int32_t group : {1, 4, 7}) {
      SCOPED_TRACE(group);
      MomentInput input(keys, values, group, /*rank=*/8);
      input.args.log = true;
      ExpectMomentParity(spec, input.args);
    }
  }
}

// A score is one f32, which hides the order of a sum in f64 unless most digits cancel.
TEST(ExpectedAttentionParity, EveryBackendMatchesRefWhereTheOrderOfTheSumOverTokensShows) {
  const HostKvSpec spec = {.dtype = DType::kF32, .kv_heads = 4, .tokens = 1100, .head_dim = 8};
  const std::vector<float> depths = RandomFloats(spec.kv_heads * spec.tokens, /*seed=*/11);
  HostKv keys(spec);
  for (int64_t head = 0; head < spec.kv_heads; ++head) {
    for (int64_t token = 0; token < spec.tokens; ++token) {
      // One token has nearly all: the log of its share is what the others add to 1.
      const float logit = -30.0f - std::abs(depths[head * spec.tokens + token]);
      keys.Set(0, head, token, 0, token == 300 * head ? 0.0f : logit);
    }
  }
  MomentInput input(keys, keys, /*group=*/1, /*rank=*/0);
  std::fill(input.diagonal.begin(), input.diagonal.end(), 0.0);
  std::fill(input.linear.begin(), input.linear.end(), 1.0);
  std::fill(input.counted.begin(), input.counted.end(), 1);
  input.args.log = true;
  input.args.value_norm = false;
  ExpectMomentParity(spec, input.args);
}

TEST(ExpectedAttentionParity, EveryBackendMatchesRefWhereTheOrderOfTheSumOverHeadDimShows) {
  const HostKvSpec spec = {.dtype = DType::kF32, .kv_heads = 2, .tokens = 60, .head_dim = 72};
  const int64_t half = spec.head_dim / 2;
  HostKv keys = RandomKv(spec, /*seed=*/12);
  for (int64_t head = 0; head < spec.kv_heads; ++head) {
    for (int64_t token = 1; token < spec.tokens; ++token) {
      for (int64_t d = 0; d < half; ++d) keys.Set(0, head, token, d, keys.Get(0, head, 0, d));
    }
  }
  for (const bool full : {false, true}) {
    SCOPED_TRACE(full);
    MomentInput input(keys, keys, /*group=*/1, full ? static_cast<int32_t>(spec.head_dim) : 3);
    // The half that all keys share makes logits so large that their last digits reach the scores.
    const auto enlarge = [&](std::vector<double>& vectors, double shared, double rest) {
      for (size_t i = 0; i < vectors.size(); ++i) {
        vectors[i] *= static_cast<int64_t>(i) % spec.head_dim < half ? shared : rest;
      }
    };
    if (full) {
      for (size_t i = 0; i < input.factors.size(); ++i) {
        const int64_t at = static_cast<int64_t>(i) % (spec.head_dim * spec.head_dim);
        const bool shared = at / spec.head_dim < half && at % spec.head_dim < half;
        if (shared) input.factors[i] *= 1e11;
      }
      input.args.diagonal = {};
    } else {
      enlarge(input.linear, 1e10, 1);
      enlarge(input.diagonal, 1e10, 1);
      enlarge(input.factors, 1e6, 1e-4);  // squared
    }
    input.args.full = full;
    input.args.log = true;
    input.args.value_norm = false;
    ExpectMomentParity(spec, input.args);
  }
}

TEST(ExpectedAttentionParity, SequencesTogetherAreEachOfThemAlone) {
  for (const HostKvSpec& kind :
       {HostKvSpec{.kv_heads = 2, .head_dim = 64},
        HostKvSpec{.dtype = DType::kF16, .kv_heads = 3, .head_dim = 24},
        HostKvSpec{.kv_heads = 2, .head_dim = 40, .layout = TileLayout::kColumns}}) {
    const std::vector<HostKvSpec> specs = RaggedSpecs(kind);
    std::deque<HostKv> rows;
    std::deque<MomentInput> inputs;
    std::vector<ExpectedAttentionArgs> args;
    for (const HostKvSpec& spec : specs) {
      const HostKv& keys = rows.emplace_back(RandomKv(spec, /*seed=*/rows.size()));
      const HostKv& values = rows.emplace_back(RandomKv(spec, /*seed=*/rows.size()));
      args.push_back(
          inputs.emplace_back(keys, values, /*group=*/2, /*rank=*/5, /*seed=*/100 + rows.size())
              .args);
    }
    ExpectScoreCohortParity<ExpectedAttentionArgs>(specs, args, &Backend::ExpectedAttention);
    for (ExpectedAttentionArgs& one : args) one.log = true;
    ExpectScoreCohortParity<ExpectedAttentionArgs>(specs, args, &Backend::ExpectedAttention);
  }
}

TEST(ExpectedAttentionParity, EveryBackendMatchesRefOnRowsThatAreNotFinite) {
  const HostKvSpec spec = {.dtype = DType::kF32, .kv_heads = 2, .tokens = 40, .head_dim = 16};
  HostKv keys = RandomKv(spec, /*seed=*/7);
  HostKv values = RandomKv(spec, /*seed=*/8);
  keys.Set(0, 0, 5, 3, std::numeric_limits<float>::quiet_NaN());
  values.Set(0, 0, 6, 3, std::numeric_limits<float>::infinity());
  for (int64_t token = 0; token < spec.tokens; ++token) {
    keys.Set(0, 1, token, 0, std::numeric_limits<float>::infinity());
  }
  MomentInput input(keys, values, /*group=*/2, /*rank=*/2);
  ExpectMomentParity(spec, input.args);
  input.args.log = true;
  ExpectMomentParity(spec, input.args);
}

}  // namespace
}  // namespace kvern::support
