// Epochs order calls; what is remembered is bounded.
#include "server/engine/sequence_memory.h"

#include <gtest/gtest.h>

#include "kernels/base/error_reason.h"
#include "server/engine/slot_positions.h"

namespace kvern::engine {
namespace {

std::shared_ptr<const RememberedSlots> Slots(std::vector<int32_t> positions, int64_t next) {
  auto slots = std::make_shared<RememberedSlots>();
  slots->tokens = static_cast<int64_t>(positions.size());
  slots->positions = std::move(positions);
  slots->next_position = next;
  return slots;
}

TEST(SequenceMemory, AnswersPositionsOnlyAtTheirEpoch) {
  SequenceMemory memory(10, 1000);
  EXPECT_EQ(*memory.Look("a", 3), nullptr);
  memory.Remember("a", 4, Slots({0, 5}, 6));
  EXPECT_NE(*memory.Look("a", 4), nullptr);
  EXPECT_EQ(*memory.Look("a", 5), nullptr);
  EXPECT_EQ(ReasonOf(memory.Look("a", 3).status()), "EPOCH_MISMATCH");
  EXPECT_TRUE(memory.Forget("a"));
  EXPECT_FALSE(memory.Forget("a"));
  EXPECT_TRUE(memory.Look("a", 3).ok());
}

TEST(SequenceMemory, DropsTheLeastRecentlyUsedAboveItsNumberAndItsBytes) {
  SequenceMemory memory(2, 16);
  memory.Remember("a", 1, nullptr);
  memory.Remember("b", 1, nullptr);
  EXPECT_TRUE(memory.Look("a", 1).ok());
  memory.Remember("c", 1, nullptr);
  EXPECT_EQ(memory.Count(), 2);
  EXPECT_TRUE(memory.Look("b", 0).ok());  // forgotten, so first seen
  EXPECT_FALSE(memory.Look("a", 0).ok());
  memory.Remember("d", 1, Slots({1, 2, 3}, 4));
  memory.Remember("e", 1, Slots({1, 2, 3}, 4));
  EXPECT_EQ(memory.Count(), 1);
  EXPECT_EQ(*memory.Look("d", 1), nullptr);
}

TEST(SlotPositions, ExtendsEachRowFromItsOwnLength) {
  RememberedSlots slots;
  slots.per_head = true;
  slots.tokens = 3;
  slots.positions = {0, 2, 9, 0, 9, -1};
  slots.next_position = 10;
  const std::vector<int32_t> lengths = {5, 4};
  const SlotPositions positions = Extend(slots, {1, 2, 5, &lengths});
  EXPECT_EQ(positions.values, (std::vector<int32_t>{0, 2, 9, 10, 11, 0, 9, 10, 11, -1}));
  EXPECT_EQ(positions.logical_tokens, 12);
}

TEST(SlotPositions, CutsToASequenceThatWasRolledBack) {
  const std::vector<int32_t> lengths;
  const SlotPositions positions = Extend(*Slots({0, 4, 8}, 9), {2, 2, 2, &lengths});
  EXPECT_EQ(positions.values, (std::vector<int32_t>{0, 4}));
}

TEST(SlotPositions, SharesRowsThatAreEqual) {
  EXPECT_EQ(Shared({{0, 3, 0, 3}, true, 4}, 2).values, (std::vector<int32_t>{0, 3}));
  EXPECT_EQ(Shared({{0, 3, 0, 2}, true, 4}, 2).values.size(), 4u);
  EXPECT_TRUE(Shared({{}, true, 0}, 0).values.empty());
}

}  // namespace
}  // namespace kvern::engine
