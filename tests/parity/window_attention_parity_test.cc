// WindowAttention: every backend gives ref's bits, for both pools and reductions.
#include <deque>
#include <limits>

#include "tests/parity/parity.h"
#include "tests/parity/score_cohort.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

struct WindowInput {
  std::vector<float> queries;
  WindowAttentionArgs args;

  WindowInput(const HostKv& keys, int64_t group, int64_t window, uint64_t seed = 31) {
    const HostKvSpec& spec = keys.spec();
    const int64_t q_heads = spec.kv_heads * group;
    queries = RandomFloats(spec.layers * q_heads * window * spec.head_dim, seed);
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

// Tiles of 256 tokens have maxima and sums of their own; the window crosses the last border.
TEST(WindowAttentionParity, EveryBackendMatchesRefOverTilesWithLogitsOfEverySize) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const HostKvSpec spec = {.dtype = dtype, .kv_heads = 2, .tokens = 530, .head_dim = 40};
    HostKv keys = RandomKv(spec, /*seed=*/4);
    for (int64_t token = 256; token < 512; ++token) {
      for (int64_t d = 0; d < spec.head_dim; ++d) {
        keys.Set(0, 0, token, d, keys.Get(0, 0, token, d) * 30.0f);
      }
    }
    for (const int64_t window : {3, 33}) {
      SCOPED_TRACE(window);
      WindowInput input(keys, /*group=*/2, window);
      ExpectWindowParity(spec, input.args);
      input.args.pool_width = 45;
      ExpectWindowParity(spec, input.args);
    }
  }
}

// Keys are turned to columns 32 tokens at a time, as pairs of coordinates, alone or through a copy,
// and queries are multiplied up to a dozen at a time.
TEST(WindowAttentionParity, EveryBackendMatchesRefOnShuffledBlocksAndWindowsOfEverySize) {
  for (const HostKvSpec& kind :
       {HostKvSpec{.head_dim = 128, .block_tokens = 16}, HostKvSpec{.head_dim = 48},
        HostKvSpec{.dtype = DType::kF16, .head_dim = 80, .block_tokens = 64},
        HostKvSpec{.head_dim = 64, .layout = TileLayout::kColumns}}) {
    HostKvSpec spec = kind;
    spec.kv_heads = 2;
    spec.tokens = 330;
    spec.order = BlockOrder::kShuffled;
    SCOPED_TRACE(Describe(spec));
    const HostKv keys = RandomKv(spec, /*seed=*/6);
    for (int64_t window = 1; window <= 26; window += spec.head_dim == 128 ? 1 : 5) {
      SCOPED_TRACE(window);
      const WindowInput input(keys, /*group=*/1, window);
      ExpectWindowParity(spec, input.args);
    }
  }
}

// A tile of which a query sees no finite key.
TEST(WindowAttentionParity, EveryBackendMatchesRefOnATileThatIsNotFinite) {
  const HostKvSpec spec = {.dtype = DType::kF32, .kv_heads = 1, .tokens = 600, .head_dim = 16};
  HostKv keys = RandomKv(spec, /*seed=*/5);
  for (int64_t token = 256; token < 512; ++token) {
    keys.Set(0, 0, token, 2, std::numeric_limits<float>::infinity());
  }
  const WindowInput input(keys, /*group=*/1, /*window=*/6);
  ExpectWindowParity(spec, input.args);
}

TEST(WindowAttentionParity, SequencesTogetherAreEachOfThemAlone) {
  for (const HostKvSpec& kind :
       {HostKvSpec{.kv_heads = 2, .head_dim = 64},
        HostKvSpec{.dtype = DType::kF16, .kv_heads = 3, .head_dim = 24},
        HostKvSpec{.kv_heads = 2, .head_dim = 40, .layout = TileLayout::kColumns}}) {
    const std::vector<HostKvSpec> specs = RaggedSpecs(kind);
    std::deque<HostKv> rows;
    std::deque<WindowInput> inputs;
    std::vector<WindowAttentionArgs> args;
    for (const HostKvSpec& spec : specs) {
      const HostKv& keys = rows.emplace_back(RandomKv(spec, /*seed=*/rows.size()));
      args.push_back(
          inputs.emplace_back(keys, /*group=*/2, /*window=*/7, /*seed=*/100 + rows.size()).args);
    }
    ExpectScoreCohortParity<WindowAttentionArgs>(specs, args, &Backend::WindowAttention);
    for (WindowAttentionArgs& one : args) {
      one.pool = PoolKind::kMax;
      one.pool_width = 9;
      one.group = GroupReduce::kMax;
    }
    ExpectScoreCohortParity<WindowAttentionArgs>(specs, args, &Backend::WindowAttention);
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
