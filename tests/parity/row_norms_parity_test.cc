// RowNorms: every backend gives ref's bits.
#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

TEST(RowNormsParity, EveryBackendMatchesRefOnEveryLayout) {
  for (const HostKvSpec& spec : ParitySpecs()) {
    SCOPED_TRACE(Describe(spec));
    const HostKv rows = RandomKv(spec, /*seed=*/7);
    ExpectScoreParity(
        spec.layers, spec.kv_heads, spec.tokens,
        [&](Backend& backend, ScoreView norms) { return backend.RowNorms(rows.refs(), norms); });
  }
}

TEST(RowNormsParity, StopsWhenTheCheckFires) {
  const HostKvSpec spec = {.tokens = 300};
  const HostKv rows = RandomKv(spec, /*seed=*/8);
  ForEachBackend([&](Backend& backend) {
    const AlwaysCancelled stop;
    backend.Bind(&stop);
    GuardedBuffer<float> norms(spec.tokens);
    const absl::Status status =
        backend.RowNorms(rows.refs(), DenseView(norms.data(), 1, 1, spec.tokens));
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  });
}

}  // namespace
}  // namespace kvern::support
