// AttentionMass: every backend gives ref's bits for every switch.
#include <cmath>

#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

TEST(AttentionMassParity, EveryBackendMatchesRefForEverySwitch) {
  for (const HostKvSpec& spec : ParitySpecs()) {
    SCOPED_TRACE(Describe(spec));
    const HostKv values = RandomKv(spec, /*seed=*/1);
    const int64_t size = spec.layers * spec.kv_heads * spec.tokens;
    std::vector<float> mass = RandomFloats(size, /*seed=*/2);
    for (float& share : mass) share = std::fabs(share);
    if (size > 3) mass[3] = 0.0f;
    const std::vector<double> visible(size, 37.0);
    for (int switches = 0; switches < 8; ++switches) {
      const AttentionMassArgs args = {
          .mass = DenseView(static_cast<const float*>(mass.data()), spec.layers, spec.kv_heads,
                            spec.tokens),
          .visible = DenseView(visible.data(), spec.layers, spec.kv_heads, spec.tokens),
          .values = values.refs(),
          .per_visible = (switches & 1) != 0,
          .value_norm = (switches & 2) != 0,
          .log = (switches & 4) != 0};
      SCOPED_TRACE(switches);
      ExpectScoreParity(
          spec.layers, spec.kv_heads, spec.tokens,
          [&](Backend& backend, ScoreView scores) { return backend.AttentionMass(args, scores); });
    }
  }
}

TEST(AttentionMassParity, EveryBackendMatchesRefOnCountsThatHeadsShare) {
  const HostKvSpec spec = {.layers = 2, .kv_heads = 3, .tokens = 270};
  const int64_t size = spec.layers * spec.kv_heads * spec.tokens;
  const std::vector<float> mass = RandomFloats(size, /*seed=*/3);
  const std::vector<double> visible = RandomDoubles(spec.layers * spec.tokens, /*seed=*/4);
  AttentionMassArgs args;
  args.mass = DenseView(mass.data(), spec.layers, spec.kv_heads, spec.tokens);
  args.visible = DenseView(visible.data(), spec.layers, spec.kv_heads, spec.tokens);
  args.visible.stride[0] = spec.tokens;
  args.visible.stride[1] = 0;
  for (int layers_share = 0; layers_share < 2; ++layers_share) {
    ExpectScoreParity(
        spec.layers, spec.kv_heads, spec.tokens,
        [&](Backend& backend, ScoreView scores) { return backend.AttentionMass(args, scores); });
    args.visible.stride[0] = 0;
  }
}

}  // namespace
}  // namespace kvern::support
