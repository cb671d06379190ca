// ExpectedAttention: every backend gives ref's bits, low-rank, full and in log space.
#include <limits>

#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

struct MomentInput {
  std::vector<double> linear;
  std::vector<double> factors;
  std::vector<double> diagonal;
  std::vector<uint8_t> counted;
  ExpectedAttentionArgs args;

  MomentInput(const HostKv& keys, const HostKv& values, int32_t group, int32_t rank) {
    const HostKvSpec& spec = keys.spec();
    args.keys = keys.refs();
    args.values = values.refs();
    args.q_heads = static_cast<int32_t>(spec.kv_heads) * group;
    args.rank = rank;
    const int64_t rows = spec.layers * args.q_heads;
    linear = RandomDoubles(rows * spec.head_dim, /*seed=*/21);
    factors = RandomDoubles(rows * rank * spec.head_dim, /*seed=*/22);
    for (double& factor : factors) factor *= 0.1;
    diagonal = RandomDoubles(rows * spec.head_dim, /*seed=*/23);
    counted = RandomMask(spec, /*chance=*/0.9, /*seed=*/24);
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
  for (const int64_t head_dim : {8, 24, 64}) {
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
