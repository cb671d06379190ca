// MeanKey: every backend gives ref's bits.
#include <limits>

#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

void ExpectMeanKeyParity(const HostKvSpec& spec, const MeanKeyArgs& args) {
  const std::vector<std::byte> initial(spec.layers * spec.kv_heads * spec.head_dim * 2);
  ExpectParity(initial, [&](Backend& backend, std::span<std::byte> mean) {
    return backend.MeanKey(args, DenseView(reinterpret_cast<Float16*>(mean.data()), spec.layers,
                                           spec.kv_heads, spec.head_dim));
  });
}

TEST(MeanKeyParity, EveryBackendMatchesRefOnEveryLayout) {
  for (const HostKvSpec& spec : ParitySpecs()) {
    SCOPED_TRACE(Describe(spec));
    HostKv keys = RandomKv(spec, /*seed=*/1);
    if (spec.tokens > 9) keys.Set(0, 0, 9, 2, std::numeric_limits<float>::quiet_NaN());
    const std::vector<uint8_t> counted = RandomMask(spec, /*chance=*/0.9, /*seed=*/2);
    MeanKeyArgs args = {.keys = keys.refs(), .counted = MaskOf(spec, counted)};
    ExpectMeanKeyParity(spec, args);
    for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
      const RotationTable table =
          RotationOf(layout, static_cast<int32_t>(spec.head_dim / 2), spec.tokens);
      args.rotation = &table;
      ExpectMeanKeyParity(spec, args);
    }
  }
}

// Several tiles, the last of them and its last chunk cut short; whole steps of bands.
TEST(MeanKeyParity, EveryBackendMatchesRefOnLongRowsOfTheUsualModels) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int64_t tokens : {256, 289, 600}) {
      SCOPED_TRACE(tokens);
      const HostKvSpec spec = {.dtype = dtype, .kv_heads = 3, .tokens = tokens, .head_dim = 144};
      HostKv keys = RandomKv(spec, /*seed=*/3);
      keys.Set(0, 0, 250, 143, std::numeric_limits<float>::infinity());
      keys.Set(0, 1, tokens - 1, 0, std::numeric_limits<float>::quiet_NaN());
      const std::vector<uint8_t> counted = RandomMask(spec, /*chance=*/0.9, /*seed=*/4);
      for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
        const RotationTable table = RotationOf(layout, /*bands=*/64, spec.tokens);
        ExpectMeanKeyParity(
            spec, {.keys = keys.refs(), .rotation = &table, .counted = MaskOf(spec, counted)});
      }
    }
  }
}

}  // namespace
}  // namespace kvern::support
