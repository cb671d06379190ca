// TriAttention: every backend gives ref's bits, for both layouts and all reductions.
#include <limits>

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

}  // namespace
}  // namespace kvern::support
