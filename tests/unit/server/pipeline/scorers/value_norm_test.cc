#include <algorithm>

#include "gtest/gtest.h"
#include "tests/unit/server/pipeline/live_sequence.h"

namespace kvern::pipeline {
namespace {

TEST(ValueNorm, RanksTheTokenWithTheLargestValueFirst) {
  LiveSequence sequence(F32({.layers = 1, .kv_heads = 1, .tokens = 50, .head_dim = 16}));
  for (int64_t d = 0; d < 16; ++d) sequence.values().Set(0, 0, 31, d, 10.0f);
  const auto scores = ScoresOf(*ScorerOf("value_norm"), sequence);
  ASSERT_TRUE(scores.ok()) << scores.status().ToString();
  EXPECT_EQ(std::max_element(scores->begin(), scores->end()) - scores->begin(), 31);
  EXPECT_FLOAT_EQ((*scores)[31], 40.0f);
}

}  // namespace
}  // namespace kvern::pipeline
