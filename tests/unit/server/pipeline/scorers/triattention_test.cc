// The position-free form against the definition, which turns keys back and rotates by distance.
#include <cmath>
#include <complex>

#include "gtest/gtest.h"
#include "tests/unit/server/pipeline/live_sequence.h"

namespace kvern::pipeline {
namespace {

constexpr int64_t kTokens = 48;
constexpr int64_t kNow = 5003;  // logical tokens: gaps before the last cached one

struct Case {
  RopeLayout layout;
  bool max_over_offsets;
};

class TriAttention : public testing::TestWithParam<Case> {
 protected:
  TriAttention() : sequence_(F32({.layers = 2, .kv_heads = 1, .tokens = kTokens, .head_dim = 16})) {
    sequence_.model().rope.layout = GetParam().layout;
    sequence_.model().rope.attention_scaling = 1.1;
    sequence_.input().logical_tokens = kNow;
    for (int64_t token = 0; token < kTokens; ++token) {
      sequence_.input().positions[token] = static_cast<int32_t>(token * 100 + token % 3);
    }
  }

  // Key band before RoPE and without the attention scaling.
  std::complex<double> PlainKey(int64_t layer, int64_t token, int64_t band) {
    const RopeSpec& rope = sequence_.model().rope;
    const bool half = rope.layout == RopeLayout::kHalf;
    const int64_t bands = rope.Bands();
    const std::complex<double> cached(
        sequence_.keys().Get(layer, 0, token, half ? band : 2 * band),
        sequence_.keys().Get(layer, 0, token, half ? band + bands : 2 * band + 1));
    const double angle = double{rope.inv_freq[band]} * sequence_.input().positions[token];
    return cached * std::polar(1.0 / rope.attention_scaling, -angle);
  }

  // retention.md 3 for one query head.
  double Defined(int64_t layer, int64_t q_head, int64_t token) {
    const RopeSpec& rope = sequence_.model().rope;
    const QueryCentres& centres = *sequence_.calibrations().centres;
    const double sigma2 = rope.attention_scaling * rope.attention_scaling;
    double norm = 0, sum = 0, largest = -1e300;
    for (int64_t offset = 1; offset <= 65536; offset *= 2) {
      double trig = 0;
      norm = 0;
      for (int64_t band = 0; band < rope.Bands(); ++band) {
        const int64_t at = (layer * centres.q_heads + q_head) * centres.bands + band;
        const std::complex<double> q(centres.mean_re[at], centres.mean_im[at]);
        const std::complex<double> k = PlainKey(layer, token, band);
        const double distance = static_cast<double>(kNow - sequence_.input().positions[token]) +
                                static_cast<double>(offset);
        trig += sigma2 * std::abs(q) * std::abs(k) *
                std::cos(distance * rope.inv_freq[band] + std::arg(q * std::conj(k)));
        norm += sigma2 * (centres.abs_mean[at] - std::abs(q)) * std::abs(k);
      }
      sum += trig;
      largest = std::max(largest, trig);
    }
    return (GetParam().max_over_offsets ? largest : sum / 17) + norm;
  }

  LiveSequence sequence_;
};

TEST_P(TriAttention, MatchesTheDefinitionByPositionUpToTheAttentionScaling) {
  const auto scorer = ScorerOf(std::string("triattention:normalize=none,group=max,offsets=") +
                               (GetParam().max_over_offsets ? "max" : "mean"));
  const auto scores = ScoresOf(*scorer, sequence_);
  ASSERT_TRUE(scores.ok()) << scores.status().ToString();
  for (int64_t layer = 0; layer < 2; ++layer) {
    for (int64_t token = 0; token < kTokens; ++token) {
      const double want = std::max(Defined(layer, 0, token), Defined(layer, 1, token)) * 1.1;
      EXPECT_NEAR((*scores)[layer * kTokens + token], want, 2e-4) << layer << " " << token;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, TriAttention,
                         testing::Values(Case{RopeLayout::kHalf, false},
                                         Case{RopeLayout::kHalf, true},
                                         Case{RopeLayout::kInterleaved, false},
                                         Case{RopeLayout::kInterleaved, true}));

TEST(TriAttentionScorer, UsesTheCalibrationRowsOfTheLayersPresent) {
  const support::HostKvSpec spec = F32({.layers = 2, .tokens = 40, .head_dim = 16});
  LiveSequence both(spec), second(spec);
  // The second layer alone, as layer 1 of the model.
  second.input().keys = {second.input().keys[1]};
  second.input().values = {second.input().values[1]};
  second.input().layer_indices = {1};
  const auto scorer = ScorerOf("triattention");
  const auto of_both = ScoresOf(*scorer, both);
  const auto of_second = ScoresOf(*scorer, second);
  ASSERT_TRUE(of_both.ok() && of_second.ok());
  for (int64_t token = 0; token < 40; ++token) {
    EXPECT_EQ((*of_second)[token], (*of_both)[40 + token]);
  }
}

TEST(TriAttentionScorer, RefusesACalibrationOfAnotherModel) {
  LiveSequence sequence(F32({.layers = 1, .tokens = 40, .head_dim = 16}));
  auto centres = std::make_shared<QueryCentres>(*sequence.calibrations().centres);
  centres->bands = 4;
  sequence.calibrations().centres = centres;
  const auto scores = ScoresOf(*ScorerOf("triattention"), sequence);
  ASSERT_FALSE(scores.ok());
  EXPECT_EQ(scores.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvern::pipeline
