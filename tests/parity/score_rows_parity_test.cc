// ZScore, Scale, Blend and ShareRows: every backend gives ref's bits, NaN and infinity included.
#include <limits>

#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Scores [layers, kv_heads, tokens] with some that are not finite.
std::vector<float> MixedScores(const HostKvSpec& spec, uint64_t seed) {
  std::vector<float> scores = RandomFloats(spec.layers * spec.kv_heads * spec.tokens, seed);
  const float mixed[] = {kNaN, -kNaN, kInf, -kInf, 0.0f, -0.0f, 3e38f};
  for (size_t i = 0; i < scores.size(); i += 11) scores[i] = mixed[(i / 11) % std::size(mixed)];
  return scores;
}

ConstScoreView ViewOf(const HostKvSpec& spec, const std::vector<float>& scores) {
  return DenseView(scores.data(), spec.layers, spec.kv_heads, spec.tokens);
}

class ScoreRowsParity : public ::testing::TestWithParam<HostKvSpec> {};

TEST_P(ScoreRowsParity, EveryBackendMatchesRefOnZScore) {
  const HostKvSpec spec = GetParam();
  const std::vector<float> scores = MixedScores(spec, /*seed=*/1);
  const std::vector<uint8_t> candidates = RandomMask(spec, /*chance=*/0.7, /*seed=*/2);
  ExpectScoreParity(ViewOf(spec, scores), [&](Backend& backend, ScoreView into) {
    return backend.ZScore(MaskOf(spec, candidates), into);
  });
}

TEST_P(ScoreRowsParity, EveryBackendMatchesRefOnScale) {
  const HostKvSpec spec = GetParam();
  const std::vector<float> scores = MixedScores(spec, /*seed=*/3);
  ExpectScoreParity(ViewOf(spec, scores),
                    [&](Backend& backend, ScoreView into) { return backend.Scale(-1.7f, into); });
}

TEST_P(ScoreRowsParity, EveryBackendMatchesRefOnBlend) {
  const HostKvSpec spec = GetParam();
  const std::vector<float> scores = MixedScores(spec, /*seed=*/4);
  std::vector<float> other = RandomFloats(static_cast<int64_t>(scores.size()), /*seed=*/5);
  for (size_t i = 0; i < other.size(); i += 13) other[i] = i % 2 == 0 ? kNaN : -kInf;
  for (const BlendKind kind : {BlendKind::kMax, BlendKind::kSum}) {
    ExpectScoreParity(ViewOf(spec, scores), [&](Backend& backend, ScoreView into) {
      return backend.Blend(kind, ViewOf(spec, other), into);
    });
  }
}

TEST_P(ScoreRowsParity, EveryBackendMatchesRefOnShareRows) {
  const HostKvSpec spec = GetParam();
  const std::vector<float> scores = MixedScores(spec, /*seed=*/6);
  std::vector<std::vector<int64_t>> groups(2);
  for (int64_t row = 0; row < spec.layers * spec.kv_heads; ++row) groups[row % 2].push_back(row);
  for (const GroupReduce reduce : {GroupReduce::kMax, GroupReduce::kMean}) {
    ExpectScoreParity(ViewOf(spec, scores), [&](Backend& backend, ScoreView into) {
      return backend.ShareRows(groups, reduce, into);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, ScoreRowsParity, ::testing::ValuesIn(ParitySpecs()));

}  // namespace
}  // namespace kvern::support
