// WindowAttention: every backend gives ref's bits, for both pools and reductions.
#include <limits>

#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

struct WindowInput {
  std::vector<float> queries;
  WindowAttentionArgs args;

  WindowInput(const HostKv& keys, int64_t group, int64_t window) {
    const HostKvSpec& spec = keys.spec();
    const int64_t q_heads = spec.kv_heads * group;
    queries = RandomFloats(spec.layers * q_heads * window * spec.head_dim, /*seed=*/31);
    args.keys = keys.refs();
    args.queries = DenseView(static_cast<const float*>(queries.data()), spec.layers, q_heads,
                             window, spec.head_dim);
  }
};

void ExpectWindowParity(const HostKvSpec& spec, const WindowAttentionArgs& args) {
  ExpectScoreParity(
      spec.layers, spec.kv_heads, spec.tokens,
      [&](Backend& backend, ScoreView scores) { return backend.WindowAttention(args, scores); });
}

TEST(WindowAttentionParity, EveryBackendMatchesRefOnEveryLayout) {
  for (const HostKvSpec& spec : ParitySpecs()) {
    SCOPED_TRACE(Describe(spec));
    const HostKv keys = RandomKv(spec, /*seed=*/1);
    WindowInput input(keys, /*group=*/2, /*window=*/5);
    ExpectWindowParity(spec, input.args);
    input.args.pool = PoolKind::kMax;
    input.args.pool_width = 7;
    input.args.group = GroupReduce::kMax;
    ExpectWindowParity(spec, input.args);
  }
}

TEST(WindowAttentionParity, EveryBackendMatchesRefOnWindowsAroundTheLength) {
  const HostKvSpec spec = {.kv_heads = 2, .tokens = 20, .head_dim = 32};
  const HostKv keys = RandomKv(spec, /*seed=*/2);
  for (const int64_t window : {1, 19, 20, 21, 32}) {
    SCOPED_TRACE(window);
    const WindowInput input(keys, /*group=*/1, window);
    ExpectWindowParity(spec, input.args);
  }
}

TEST(WindowAttentionParity, EveryBackendMatchesRefOnKeysThatAreNotFinite) {
  const HostKvSpec spec = {.dtype = DType::kF32, .kv_heads = 2, .tokens = 40, .head_dim = 16};
  HostKv keys = RandomKv(spec, /*seed=*/3);
  keys.Set(0, 0, 0, 3, std::numeric_limits<float>::quiet_NaN());
  keys.Set(0, 0, 38, 3, std::numeric_limits<float>::infinity());
  for (int64_t token = 0; token < spec.tokens; ++token) {
    keys.Set(0, 1, token, 0, std::numeric_limits<float>::infinity());
  }
  const WindowInput input(keys, /*group=*/2, /*window=*/4);
  ExpectWindowParity(spec, input.args);
}

}  // namespace
}  // namespace kvern::support
