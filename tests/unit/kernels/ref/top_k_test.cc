// The declared order decides: score, then position by the tie rule, NaN last, forced always.
#include "kernels/ref/top_k.h"

#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/parity/parity.h"

namespace kvern {
namespace {

using testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct RowCase {
  std::vector<float> scores;
  std::vector<uint8_t> forced;  // empty: none
  TieRule tie = TieRule::kRecent;
};

std::vector<int32_t> Select(const RowCase& row, int32_t count) {
  const int64_t tokens = static_cast<int64_t>(row.scores.size());
  std::vector<uint8_t> forced = row.forced;
  forced.resize(tokens, 0);
  std::vector<uint8_t> candidates(tokens);
  for (int64_t i = 0; i < tokens; ++i) candidates[i] = 1 - forced[i];
  KeepList keep = KeepList::WithCounts(DenseView(static_cast<const int32_t*>(&count), 1, 1));
  TopKArgs args;
  args.scores = DenseView(row.scores.data(), 1, 1, tokens);
  args.candidates = DenseView(static_cast<const uint8_t*>(candidates.data()), 1, 1, tokens);
  args.forced = DenseView(static_cast<const uint8_t*>(forced.data()), 1, 1, tokens);
  args.tie = row.tie;
  EXPECT_TRUE(ref::TopK(/*stop=*/nullptr, args, &keep).ok());
  return keep.tokens;
}

TEST(RefTopK, KeepsTheBestInAscendingOrder) {
  EXPECT_THAT(Select({{.3f, .9f, .1f, .7f, .8f}, {}}, 3), ElementsAre(1, 3, 4));
}

TEST(RefTopK, BreaksTiesByPosition) {
  EXPECT_THAT(Select({{1, 2, 1, 1, 1}, {}, TieRule::kRecent}, 3), ElementsAre(1, 3, 4));
  EXPECT_THAT(Select({{1, 2, 1, 1, 1}, {}, TieRule::kOldest}, 3), ElementsAre(0, 1, 2));
}

TEST(RefTopK, TreatsBothZerosAsEqual) {
  EXPECT_THAT(Select({{0.0f, -0.0f, 0.0f, -0.0f}, {}, TieRule::kRecent}, 2), ElementsAre(2, 3));
  EXPECT_THAT(Select({{-0.0f, 0.0f, -0.0f, 0.0f}, {}, TieRule::kOldest}, 2), ElementsAre(0, 1));
}

TEST(RefTopK, RanksNanBelowMinusInfinity) {
  EXPECT_THAT(Select({{kNan, -kInfinity, kNan, 0.0f}, {}}, 2), ElementsAre(1, 3));
  EXPECT_THAT(Select({{kNan, -kInfinity, -kNan, 0.0f}, {}}, 3), ElementsAre(1, 2, 3));
}

TEST(RefTopK, AlwaysKeepsForcedTokens) {
  EXPECT_THAT(Select({{9, 8, 7, 6, 5}, {0, 0, 0, 1, 1}}, 3), ElementsAre(0, 3, 4));
  EXPECT_THAT(Select({{9, 8, 7, 6, 5}, {1, 0, 0, 0, 1}}, 2), ElementsAre(0, 4));
}

TEST(RefTopK, TakesEverythingOrNothing) {
  EXPECT_THAT(Select({{3, kNan, 1}, {}}, 3), ElementsAre(0, 1, 2));
  EXPECT_THAT(Select({{3, 2, 1}, {}}, 0), ElementsAre());
  EXPECT_THAT(Select({{}, {}}, 0), ElementsAre());
}

TEST(RefTopK, StopsWhenAsked) {
  const support::AlwaysCancelled stop;
  const std::vector<float> scores = {1.0f};
  const std::vector<uint8_t> one = {1};
  const std::vector<uint8_t> zero = {0};
  const int32_t count = 1;
  KeepList keep = KeepList::WithCounts(DenseView(&count, 1, 1));
  TopKArgs args;
  args.scores = DenseView(scores.data(), 1, 1, 1);
  args.candidates = DenseView(one.data(), 1, 1, 1);
  args.forced = DenseView(zero.data(), 1, 1, 1);
  EXPECT_EQ(ref::TopK(&stop, args, &keep).code(), absl::StatusCode::kCancelled);
}

TEST(RefTopKDeathTest, FindsTooFewCandidatesToBeOurBug) {
  EXPECT_DEATH(Select({{1, 2, 3}, {}}, 4), "broken invariant");
  EXPECT_DEATH(Select({{1, 2, 3}, {1, 1, 0}}, 1), "broken invariant");
}

}  // namespace
}  // namespace kvern
