// KeyDiff: every backend gives ref's bits, with and without un-rotation.
#include <limits>

#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

void ExpectKeyDiffParity(const HostKvSpec& spec, const KeyDiffArgs& args) {
  ExpectScoreParity(
      spec.layers, spec.kv_heads, spec.tokens,
      [&](Backend& backend, ScoreView scores) { return backend.KeyDiff(args, scores); });
}

TEST(KeyDiffParity, EveryBackendMatchesRefOnEveryLayout) {
  for (const HostKvSpec& spec : ParitySpecs()) {
    SCOPED_TRACE(Describe(spec));
    const HostKv keys = RandomKv(spec, /*seed=*/1);
    const std::vector<uint8_t> alive = RandomMask(spec, /*chance=*/0.9, /*seed=*/2);
    KeyDiffArgs args = {.keys = keys.refs(), .unrotate = nullptr, .alive = MaskOf(spec, alive)};
    ExpectKeyDiffParity(spec, args);
    for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
      const RotationTable table =
          RotationOf(layout, static_cast<int32_t>(spec.head_dim / 2) - 1, spec.tokens);
      args.unrotate = &table;
      ExpectKeyDiffParity(spec, args);
    }
  }
}

TEST(KeyDiffParity, EveryBackendMatchesRefOnZeroKeysAndKeysThatAreNotFinite) {
  const HostKvSpec spec = {.dtype = DType::kF32, .kv_heads = 3, .tokens = 40, .head_dim = 16};
  HostKv keys = RandomKv(spec, /*seed=*/3);
  keys.Set(0, 0, 4, 3, std::numeric_limits<float>::quiet_NaN());
  keys.Set(0, 0, 5, 3, 3e38f);
  for (int64_t token = 0; token < spec.tokens; ++token) {
    keys.Set(0, 1, token, 0, std::numeric_limits<float>::infinity());
    for (int64_t d = 0; d < spec.head_dim; ++d) keys.Set(0, 2, token, d, 0.0f);
  }
  const std::vector<uint8_t> alive(spec.kv_heads * spec.tokens, 1);
  ExpectKeyDiffParity(spec, {.keys = keys.refs(), .alive = MaskOf(spec, alive)});
}

// Several tiles, the last of them and its last chunk cut short; whole steps of bands.
TEST(KeyDiffParity, EveryBackendMatchesRefOnLongRowsOfTheUsualModels) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int64_t tokens : {256, 289, 600}) {
      SCOPED_TRACE(tokens);
      const HostKvSpec spec = {.dtype = dtype, .kv_heads = 3, .tokens = tokens, .head_dim = 144};
      HostKv keys = RandomKv(spec, /*seed=*/5);
      keys.Set(0, 0, 250, 143, std::numeric_limits<float>::infinity());
      keys.Set(0, 1, tokens - 1, 0, std::numeric_limits<float>::quiet_NaN());
      const std::vector<uint8_t> alive = RandomMask(spec, /*chance=*/0.9, /*seed=*/6);
      for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
        const RotationTable table = RotationOf(layout, /*bands=*/64, spec.tokens);
        ExpectKeyDiffParity(
            spec, {.keys = keys.refs(), .unrotate = &table, .alive = MaskOf(spec, alive)});
      }
    }
  }
}

}  // namespace
}  // namespace kvern::support
