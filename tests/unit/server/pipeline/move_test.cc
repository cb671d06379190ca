// Moving kept tokens: dense, in place, behind a prefix, renumbered.
#include <cmath>

#include "gtest/gtest.h"
#include "tests/unit/server/pipeline/packed_sequence.h"

namespace kvern::pipeline {
namespace {

support::HostKvSpec Spec() {
  support::HostKvSpec spec = F32({.layers = 2, .kv_heads = 2, .tokens = 120, .head_dim = 16});
  spec.order = support::BlockOrder::kShuffled;
  return spec;
}

class MoveTest : public testing::Test {
 protected:
  void Plan(const PolicyWords& words) {
    policy_ = PolicyOf(words);
    auto plan = PlanKeep(*backend_, sequence_.input(), policy_);
    ASSERT_TRUE(plan.ok()) << plan.status().ToString();
    plan_ = *std::move(plan);
  }
  absl::Status Run(const MoveTarget& target) {
    return Move(*backend_, sequence_.input(), policy_, plan_, target);
  }

  std::unique_ptr<Backend> backend_ = RefBackend();
  LiveSequence sequence_{Spec()};
  ResolvedPolicy policy_;
  KeepPlan plan_;
};

TEST_F(MoveTest, CopiesKeptTokensAndLeavesTheSourceAlone) {
  Plan({});
  LiveSequence untouched(Spec());
  DenseTarget target(sequence_.input(), plan_.max_kept);
  ASSERT_TRUE(Run(target.ToMove()).ok());
  EXPECT_EQ(RelativeError(plan_, untouched.keys(), target.keys()), 0.0);
  EXPECT_EQ(RelativeError(plan_, untouched.values(), target.values()), 0.0);
  EXPECT_TRUE(std::equal(untouched.keys().memory().begin(), untouched.keys().memory().end(),
                         sequence_.keys().memory().begin()));
}

TEST_F(MoveTest, GivesTheSameTokensInPlace) {
  Plan({});
  LiveSequence original(Spec());
  MoveTarget in_place;
  in_place.keys = sequence_.input().keys;
  in_place.values = sequence_.input().values;
  in_place.in_place = true;
  ASSERT_TRUE(Run(in_place).ok());
  EXPECT_EQ(RelativeError(plan_, original.keys(), sequence_.keys()), 0.0);
  EXPECT_EQ(RelativeError(plan_, original.values(), sequence_.values()), 0.0);
}

TEST_F(MoveTest, LeavesSlotsBeforeTheFirstAlone) {
  sequence_.input().readonly_prefix_tokens = 16;
  Plan({});
  DenseTarget target(sequence_.input(), plan_.max_kept);
  MoveTarget after_prefix = target.ToMove();
  after_prefix.first_slot = 16;
  ASSERT_TRUE(Run(after_prefix).ok());
  EXPECT_EQ(target.keys().Get(0, 0, 15, 3), 0.0f);
  const int32_t token = plan_.keep.Row(0, 0)[16];
  EXPECT_EQ(target.keys().Get(0, 0, 16, 3), sequence_.keys().Get(0, 0, token, 3));
}

TEST_F(MoveTest, RefusesAFirstSlotBeyondTheTokensThatAreInPlace) {
  Plan({});
  DenseTarget target(sequence_.input(), plan_.max_kept);
  MoveTarget wrong = target.ToMove();
  wrong.first_slot = plan_.max_kept;
  EXPECT_EQ(Run(wrong).code(), absl::StatusCode::kInternal);
}

TEST_F(MoveTest, TurnsRenumberedKeysToTheirSlotsAndValuesNot) {
  for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
    sequence_.model().rope.layout = layout;
    PolicyWords words;
    words.positions = PositionMode::kRenumber;
    Plan(words);
    DenseTarget target(sequence_.input(), plan_.max_kept);
    ASSERT_TRUE(Run(target.ToMove()).ok());
    EXPECT_EQ(RelativeError(plan_, sequence_.values(), target.values()), 0.0);
    for (int64_t slot = 0; slot < plan_.max_kept; ++slot) {
      const int32_t token = plan_.keep.Row(1, 1)[slot];
      for (int64_t band = 0; band < 8; ++band) {
        const bool half = layout == RopeLayout::kHalf;
        const int64_t a = half ? band : 2 * band, b = half ? band + 8 : 2 * band + 1;
        const double turn =
            double{sequence_.model().rope.inv_freq[band]} * static_cast<double>(slot - token);
        const double x = sequence_.keys().Get(1, 1, token, a);
        const double y = sequence_.keys().Get(1, 1, token, b);
        EXPECT_NEAR(target.keys().Get(1, 1, slot, a), x * std::cos(turn) - y * std::sin(turn),
                    1e-5);
        EXPECT_NEAR(target.keys().Get(1, 1, slot, b), y * std::cos(turn) + x * std::sin(turn),
                    1e-5);
      }
    }
  }
}

TEST_F(MoveTest, RenumbersByThePositionsThatSlotsHoldNotByTheirIndex) {
  for (size_t slot = 0; slot < 120; ++slot) {
    sequence_.input().positions[slot] = static_cast<int32_t>(3 * slot + 2);
  }
  sequence_.input().logical_tokens = 400;
  PolicyWords words;
  words.positions = PositionMode::kRenumber;
  Plan(words);
  DenseTarget target(sequence_.input(), plan_.max_kept);
  ASSERT_TRUE(Run(target.ToMove()).ok());
  const double turn = -2.0;  // slot 0 holds position 2; band 0 has frequency 1
  const double x = sequence_.keys().Get(0, 0, 0, 0), y = sequence_.keys().Get(0, 0, 0, 8);
  EXPECT_NEAR(target.keys().Get(0, 0, 0, 0), x * std::cos(turn) - y * std::sin(turn), 1e-5);
}

TEST_F(MoveTest, MovesNothingWhenNothingIsKept) {
  PolicyWords words;
  words.budget = TokenBudget{0};
  words.sink_tokens = 0;
  words.positions = PositionMode::kRenumber;
  Plan(words);
  DenseTarget target(sequence_.input(), 0);
  EXPECT_TRUE(Run(target.ToMove()).ok());
}

}  // namespace
}  // namespace kvern::pipeline
