// TriAttention: every backend gives ref's bits, for both layouts and all reductions.
#include <algorithm>
#include <limits>

#include "tests/parity/cancelling.h"
#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

struct TriInput {
  std::vector<float> u;
  std::vector<float> w;
  std::vector<uint8_t> candidates;
  TriAttentionArgs args;

  TriInput(const HostKv& keys, int32_t group, int32_t columns, int32_t bands) {
    const HostKvSpec& spec = keys.spec();
    args.keys = keys.refs();
    args.bands = bands;
    args.q_heads = static_cast<int32_t>(spec.kv_heads) * group;
    args.columns = columns;
    u = RandomFloats(spec.layers * args.q_heads * columns * 2 * bands, /*seed=*/11);
    w = RandomFloats(spec.layers * args.q_heads * bands, /*seed=*/12);
    candidates = RandomMask(spec, /*chance=*/0.8, /*seed=*/13);
    args.u = DenseView(static_cast<const float*>(u.data()), spec.layers, args.q_heads, columns,
                       2 * bands);
    args.w = DenseView(static_cast<const float*>(w.data()), spec.layers, args.q_heads, bands);
    args.candidates = MaskOf(spec, candidates);
  }
};

void ExpectTriParity(const HostKvSpec& spec, const TriAttentionArgs& args) {
  ExpectScoreParity(
      spec.layers, spec.kv_heads, spec.tokens,
      [&](Backend& backend, ScoreView scores) { return backend.TriAttention(args, scores); });
}

TEST(TriAttentionParity, EveryBackendMatchesRefOnEveryLayout) {
  for (const HostKvSpec& spec : ParitySpecs()) {
    SCOPED_TRACE(Describe(spec));
    const HostKv keys = RandomKv(spec, /*seed=*/1);
    TriInput input(keys, /*group=*/3, /*columns=*/1, static_cast<int32_t>(spec.head_dim / 2));
    ExpectTriParity(spec, input.args);
    input.args.layout = RopeLayout::kInterleaved;
    input.args.zscore = false;
    ExpectTriParity(spec, input.args);
  }
}

TEST(TriAttentionParity, EveryBackendMatchesRefOnManyColumnsAndMeans) {
  for (const HostKvSpec& spec : ParitySpecs()) {
    SCOPED_TRACE(Describe(spec));
    const HostKv keys = RandomKv(spec, /*seed=*/2);
    TriInput input(keys, /*group=*/2, /*columns=*/17, static_cast<int32_t>(spec.head_dim / 2));
    input.args.group = GroupReduce::kMean;
    ExpectTriParity(spec, input.args);
  }
}

TEST(TriAttentionParity, EveryBackendMatchesRefOnPartialRotary) {
  const HostKvSpec spec = {.layers = 1, .kv_heads = 2, .tokens = 100, .head_dim = 80};
  const HostKv keys = RandomKv(spec, /*seed=*/3);
  for (const int32_t bands : {1, 5, 9, 10, 27}) {
    SCOPED_TRACE(bands);
    TriInput input(keys, /*group=*/1, /*columns=*/2, bands);
    ExpectTriParity(spec, input.args);
    input.args.layout = RopeLayout::kInterleaved;
    ExpectTriParity(spec, input.args);
  }
}

TEST(TriAttentionParity, EveryBackendMatchesRefOnKeysThatAreNotFinite) {
  HostKvSpec spec = {.dtype = DType::kF32, .kv_heads = 2, .tokens = 70, .head_dim = 32};
  HostKv keys = RandomKv(spec, /*seed=*/4);
  keys.Set(0, 0, 0, 3, std::numeric_limits<float>::quiet_NaN());
  keys.Set(0, 0, 33, 31, std::numeric_limits<float>::infinity());
  keys.Set(0, 0, 40, 5, 3e38f);
  for (int64_t token = 0; token < spec.tokens; ++token) {
    keys.Set(0, 1, token, 0, -std::numeric_limits<float>::infinity());
  }
  TriInput input(keys, /*group=*/2, /*columns=*/3, /*bands=*/16);
  ExpectTriParity(spec, input.args);
  input.args.group = GroupReduce::kMean;
  ExpectTriParity(spec, input.args);
}

TEST(TriAttentionParity, EveryBackendMatchesRefOnRowsOfTheUsualModels) {
  // Groups of more than four query heads, several tiles; bf16 is what a device holds in registers.
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int64_t head_dim : {64, 128}) {
      const HostKvSpec spec = {.dtype = dtype,
                               .kv_heads = 2,
                               .tokens = 310,
                               .head_dim = head_dim,
                               .lengths = {310, 259}};
      SCOPED_TRACE(Describe(spec));
      HostKv keys = RandomKv(spec, /*seed=*/5);
      keys.Set(0, 0, 258, 1, std::numeric_limits<float>::quiet_NaN());
      keys.Set(0, 1, 3, head_dim - 1, std::numeric_limits<float>::infinity());
      for (int64_t d = 0; d < head_dim; ++d) keys.Set(0, 0, 7, d, d % 2 == 0 ? 0.0f : -0.0f);
      TriInput input(keys, /*group=*/6, /*columns=*/2, static_cast<int32_t>(head_dim / 2));
      ExpectTriParity(spec, input.args);
      input.args.group = GroupReduce::kMean;
      input.args.zscore = false;
      ExpectTriParity(spec, input.args);
    }
  }
}

TEST(TriAttentionParity, EveryBackendAddsOverTokensInTheOrderOfRef) {
  // Raw scores are the first coordinates, whose sum shows its order.
  const HostKvSpec spec = {.dtype = DType::kF32, .tokens = 4500, .head_dim = 64};
  HostKv keys(spec);
  const std::vector<float> scores = CancellingFloats(spec.tokens, /*seed=*/7);
  for (int64_t token = 0; token < spec.tokens; ++token) keys.Set(0, 0, token, 0, scores[token]);
  TriInput input(keys, /*group=*/2, /*columns=*/1, /*bands=*/32);
  std::fill(input.w.begin(), input.w.end(), 0.0f);
  std::fill(input.u.begin(), input.u.end(), 0.0f);
  input.u[0] = 1.0f;
  input.u[64] = -2.0f;
  std::fill(input.candidates.begin(), input.candidates.end(), uint8_t{1});
  for (const GroupReduce group : {GroupReduce::kMax, GroupReduce::kMean}) {
    input.args.group = group;
    ExpectTriParity(spec, input.args);
  }
}

TEST(TriAttentionParity, EveryBackendCentresOnTheFirstFiniteCandidate) {
  const HostKvSpec spec = {.kv_heads = 2, .tokens = 300, .head_dim = 64};
  HostKv keys = RandomKv(spec, /*seed=*/8);
  // Far from zero, so that every other reference key rounds otherwise.
  for (int64_t head = 0; head < spec.kv_heads; ++head) {
    for (int64_t token = 0; token < spec.tokens; ++token) {
      for (int64_t d = 0; d < spec.head_dim; ++d) {
        keys.Set(0, head, token, d, 100.0f * keys.Get(0, head, token, d) + 777.0f);
      }
    }
  }
  TriInput input(keys, /*group=*/2, /*columns=*/1, /*bands=*/32);
  input.args.zscore = false;
  // The first head begins late, at a key that is not finite; the other has no candidates.
  std::fill_n(input.candidates.begin(), 270, uint8_t{0});
  input.candidates[270] = 1;
  keys.Set(0, 0, 270, 63, std::numeric_limits<float>::infinity());
  std::fill(input.candidates.begin() + spec.tokens, input.candidates.end(), uint8_t{0});
  keys.Set(0, 1, 0, 0, std::numeric_limits<float>::quiet_NaN());
  ExpectTriParity(spec, input.args);
}

TEST(TriAttentionParity, EveryBackendMatchesRefOnMoreVectorsThanSharedMemoryHolds) {
  const HostKvSpec spec = {.tokens = 40, .head_dim = 256};
  const HostKv keys = RandomKv(spec, /*seed=*/6);
  TriInput input(keys, /*group=*/7, /*columns=*/17, /*bands=*/128);
  ExpectTriParity(spec, input.args);
}

TEST(TriAttentionParity, EveryBackendMatchesRefForAnyNumberOfQueryHeads) {
  const HostKvSpec spec = {.dtype = DType::kBF16, .kv_heads = 2, .tokens = 270, .head_dim = 64};
  const HostKv keys = RandomKv(spec, /*seed=*/21);
  for (const int32_t group : {1, 2, 3, 4, 5, 8}) {
    SCOPED_TRACE(group);
    TriInput input(keys, group, /*columns=*/1, /*bands=*/32);
    ExpectTriParity(spec, input.args);
    input.args.layout = RopeLayout::kInterleaved;
    ExpectTriParity(spec, input.args);
  }
}

TEST(TriAttentionParity, EveryBackendMatchesRefOnRowsLargerThanCaches) {
  const HostKvSpec spec = {.dtype = DType::kBF16, .kv_heads = 2, .tokens = 8300, .head_dim = 32};
  const HostKv keys = RandomKv(spec, /*seed=*/22);
  TriInput input(keys, /*group=*/4, /*columns=*/1, /*bands=*/16);
  ExpectTriParity(spec, input.args);
}

}  // namespace
}  // namespace kvern::support
