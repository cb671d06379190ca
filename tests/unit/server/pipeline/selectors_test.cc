// Selectors: what they keep, whose sets are shared, and when sharing cannot be.
#include <algorithm>
#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/unit/server/pipeline/live_sequence.h"

namespace kvern::pipeline {
namespace {

constexpr int64_t kTokens = 60;
constexpr int64_t kLayers = 2;
constexpr int64_t kHeads = 2;

// First 4 and last 2 tokens forced.
class SelectorTest : public testing::Test {
 protected:
  SelectorTest()
      : sequence_(F32({.layers = kLayers, .kv_heads = kHeads, .tokens = kTokens, .head_dim = 16})),
        candidates_(sequence_.Rows() * kTokens, 0),
        forced_(sequence_.Rows() * kTokens, 0),
        scores_(sequence_.side().external_scores) {
    for (int64_t at = 0; at < sequence_.Rows() * kTokens; ++at) {
      forced_[at] = at % kTokens < 4 || at % kTokens >= kTokens - 2 ? 1 : 0;
      candidates_[at] = 1 - forced_[at];
    }
  }

  absl::StatusOr<KeepList> Select(const std::string& words, std::vector<int32_t> counts) {
    KVERN_ASSIGN_OR_RETURN(const StageSpec spec, ParseStageSpec(words));
    KVERN_ASSIGN_OR_RETURN(const auto selector, MakeSelector(spec));
    KeepList keep = KeepList::WithCounts(
        DenseView(static_cast<const int32_t*>(counts.data()), kLayers, kHeads));
    std::vector<float> scores = scores_;
    KVERN_RETURN_IF_ERROR(
        selector->Select(*backend_,
                         {.sequence = &sequence_.input(),
                          .candidates = Masked(candidates_),
                          .forced = Masked(forced_),
                          .scores = DenseView(scores.data(), kLayers, kHeads, kTokens)},
                         &keep));
    return keep;
  }
  std::vector<int32_t> Kept(const std::string& words, int32_t count, int64_t row) {
    const auto keep = Select(words, std::vector<int32_t>(kLayers * kHeads, count));
    EXPECT_TRUE(keep.ok()) << keep.status().ToString();
    if (!keep.ok()) return {};
    const int32_t* tokens = keep->Row(row / kHeads, row % kHeads);
    return {tokens, tokens + count};
  }
  static MaskView Masked(const std::vector<uint8_t>& mask) {
    return DenseView(mask.data(), kLayers, kHeads, kTokens);
  }

  std::unique_ptr<Backend> backend_ = RefBackend();
  LiveSequence sequence_;
  std::vector<uint8_t> candidates_;
  std::vector<uint8_t> forced_;
  std::vector<float> scores_;
};

TEST_F(SelectorTest, TopKKeepsForcedTokensAndTheBestOfTheRest) {
  for (int64_t row = 0; row < 4; ++row) {
    std::vector<int32_t> order;
    for (int32_t token = 4; token < kTokens - 2; ++token) order.push_back(token);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return scores_[row * kTokens + a] > scores_[row * kTokens + b];
    });
    std::vector<int32_t> want = {0, 1, 2, 3, kTokens - 2, kTokens - 1};
    want.insert(want.end(), order.begin(), order.begin() + 10);
    std::sort(want.begin(), want.end());
    EXPECT_EQ(Kept("topk", 16, row), want);
  }
}

TEST_F(SelectorTest, TopKKeepsTheRecentOfEqualScoresUnlessToldTheOldest) {
  std::fill(scores_.begin(), scores_.end(), 1.0f);
  EXPECT_EQ(Kept("topk", 8, 0), (std::vector<int32_t>{0, 1, 2, 3, 56, 57, 58, 59}));
  EXPECT_EQ(Kept("topk:tie=oldest", 8, 0), (std::vector<int32_t>{0, 1, 2, 3, 4, 5, 58, 59}));
}

TEST_F(SelectorTest, SmallerTopKSetsLieInsideLargerOnes) {
  for (int64_t row = 0; row < 4; ++row) {
    std::vector<int32_t> larger = Kept("topk", kTokens, row);
    for (int32_t count = kTokens - 1; count >= 6; --count) {
      const std::vector<int32_t> smaller = Kept("topk", count, row);
      EXPECT_TRUE(std::includes(larger.begin(), larger.end(), smaller.begin(), smaller.end()));
      larger = smaller;
    }
  }
}

TEST_F(SelectorTest, SharesSetsAsAsked) {
  const struct {
    const char* words;
    bool heads_equal, layers_equal;
  } kCases[] = {{"topk", false, false},
                {"topk:share=heads", true, false},
                {"topk:share=layers,reduce=max", false, true},
                {"topk:share=all", true, true},
                {"diverse:share=heads", true, false},
                {"diverse:share=layers", false, true},
                {"diverse:share=all,reduce=max", true, true}};
  for (const auto& shared : kCases) {
    SCOPED_TRACE(shared.words);
    EXPECT_EQ(Kept(shared.words, 20, 0) == Kept(shared.words, 20, 1), shared.heads_equal);
    EXPECT_EQ(Kept(shared.words, 20, 0) == Kept(shared.words, 20, 2), shared.layers_equal);
  }
}

TEST_F(SelectorTest, SharedSetsFollowTheMaximumOfTheirRowsWithReduceMax) {
  scores_.assign(scores_.size(), 0.0f);
  scores_[3 * kTokens + 30] = 9.0f;
  scores_[0 * kTokens + 40] = 5.0f;
  const std::vector<int32_t> kept = Kept("topk:share=all,reduce=max", 8, 2);
  EXPECT_EQ(kept, (std::vector<int32_t>{0, 1, 2, 3, 30, 40, 58, 59}));
}

TEST_F(SelectorTest, RefusesToShareSetsOfDifferentSizeOrProtection) {
  const std::vector<int32_t> by_layer = {20, 20, 10, 10};
  EXPECT_TRUE(Select("topk:share=heads", by_layer).ok());
  for (const char* words : {"topk:share=layers", "topk:share=all", "diverse:share=all"}) {
    const auto keep = Select(words, by_layer);
    ASSERT_FALSE(keep.ok()) << words;
    EXPECT_EQ(keep.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(ReasonOf(keep.status()), "SHAPE_CLASS");
  }
  forced_[kTokens + 20] = 1;
  candidates_[kTokens + 20] = 0;
  const auto keep = Select("topk:share=heads", {20, 20, 20, 20});
  ASSERT_FALSE(keep.ok());
  EXPECT_EQ(ReasonOf(keep.status()), "SHAPE_CLASS");
}

TEST_F(SelectorTest, DiverseWithoutPenaltyIsTopK) {
  for (int64_t row = 0; row < 4; ++row) {
    EXPECT_EQ(Kept("diverse:lambda=0", 20, row), Kept("topk", 20, row));
    EXPECT_EQ(Kept("diverse:lambda=0,tie=oldest", 20, row), Kept("topk:tie=oldest", 20, row));
  }
}

TEST_F(SelectorTest, DiversePassesOverTheCopyOfAPickedValue) {
  scores_.assign(scores_.size(), 0.0f);
  scores_[10] = 1.0f;
  scores_[11] = 0.9f;
  scores_[30] = 0.8f;
  for (int64_t d = 0; d < 16; ++d) {
    sequence_.values().Set(0, 0, 11, d, sequence_.values().Get(0, 0, 10, d));
    sequence_.values().Set(0, 0, 30, d, -sequence_.values().Get(0, 0, 10, d));
  }
  EXPECT_EQ(Kept("topk", 8, 0), (std::vector<int32_t>{0, 1, 2, 3, 10, 11, 58, 59}));
  EXPECT_EQ(Kept("diverse", 8, 0), (std::vector<int32_t>{0, 1, 2, 3, 10, 30, 58, 59}));
}

TEST_F(SelectorTest, SinkRecentKeepsTheFirstAndTheLastTokensWithoutScores) {
  scores_.assign(scores_.size(), std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(Kept("sink_recent", 9, 3), (std::vector<int32_t>{0, 1, 2, 3, 55, 56, 57, 58, 59}));
  EXPECT_FALSE(MakeSelector({"sink_recent", {}}).value()->NeedsScores());
}

TEST_F(SelectorTest, SinkRecentKeepsTheFirstSinksWhenThereAreMoreSinksThanPlaces) {
  EXPECT_EQ(Kept("sink_recent", 3, 0), (std::vector<int32_t>{0, 1, 2}));
}

TEST_F(SelectorTest, SinkRecentKeepsAProtectedTokenInTheMiddle) {
  forced_[20] = 1;
  candidates_[20] = 0;
  EXPECT_EQ(Kept("sink_recent", 8, 0), (std::vector<int32_t>{0, 1, 2, 3, 20, 57, 58, 59}));
}

TEST(Selectors, SayWhichClassTheirSetsHaveWithEqualCounts) {
  const std::pair<const char*, ShapeClass> kClasses[] = {{"topk", ShapeClass::kS2},
                                                         {"topk:share=heads", ShapeClass::kS1},
                                                         {"topk:share=layers", ShapeClass::kS2},
                                                         {"diverse:share=all", ShapeClass::kS0},
                                                         {"sink_recent", ShapeClass::kS0}};
  for (const auto& [words, shape_class] : kClasses) {
    const auto selector = MakeSelector(ParseStageSpec(words).value()).value();
    EXPECT_EQ(selector->EqualCountsClass(), shape_class) << words;
  }
}

TEST(Selectors, ListsThoseKnownWhenANameIsUnknown) {
  const auto selector = MakeSelector({"no_such", {}});
  ASSERT_FALSE(selector.ok());
  EXPECT_EQ(selector.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(selector.status().message());
  for (const SelectorEntry& entry : Selectors()) {
    EXPECT_NE(message.find(entry.info.name), std::string::npos) << entry.info.name;
    EXPECT_FALSE(MakeSelector({entry.info.name, {{"no_such", "1"}}}).ok());
  }
}

}  // namespace
}  // namespace kvern::pipeline
