// Memory that comes back: the next vector of the thread has it, and nothing of what lay in it.
#include "kernels/base/reuse.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

namespace kvern {
namespace {

// Types of their own: no other test leaves spares of them.
struct Item {
  int64_t value = 7;
};
struct Large {
  int64_t value = 0;
};
struct Other {
  int64_t value = 0;
};

TEST(ScratchVector, TakesTheMemoryThatTheLastOneLeft) {
  if (!kKeepSpares) GTEST_SKIP() << "nothing is kept under this sanitizer";
  const Item* left = nullptr;
  {
    ScratchVector<Item> vector(100);
    left = vector.data();
  }
  ScratchVector<Item> next;
  EXPECT_TRUE(next.empty());
  EXPECT_GE(next.capacity(), 100);
  next.resize(100);
  EXPECT_EQ(next.data(), left);
  ScratchVector<Item> both;  // the spare is taken
  EXPECT_EQ(both.capacity(), 0);
}

TEST(ScratchVector, LeavesLargeMemoryToTheHeap) {
  { ScratchVector<Large> vector(kMostSpareBytes / sizeof(Large) + 1); }
  EXPECT_EQ(ScratchVector<Large>().capacity(), 0);
}

TEST(ScratchVector, KeepsMemoryToItsThread) {
  std::thread([] { ScratchVector<Other> vector(10); }).join();
  EXPECT_EQ(ScratchVector<Other>().capacity(), 0);
}

TEST(ScratchVector, CopiesAndMovesAsVectorsDo) {
  const ScratchVector<int> one = {1, 2, 3};
  ScratchVector<int> copy = one;
  EXPECT_EQ(copy, one);
  const int* const data = copy.data();
  ScratchVector<int> moved = std::move(copy);
  EXPECT_EQ(moved.data(), data);
  copy = {4, 5};
  moved = std::move(copy);
  EXPECT_EQ(moved, (std::vector<int>{4, 5}));
  moved = one;
  EXPECT_EQ(moved, one);
  const std::vector<int> plain = std::move(moved);
  EXPECT_EQ(plain, one);
}

struct Node final : Recycled<Node> {
  int64_t values[4] = {1, 2, 3, 4};
};

TEST(Recycled, MakesTheNextObjectWhereTheLastOneWas) {
  if (!kKeepSpares) GTEST_SKIP() << "nothing is kept under this sanitizer";
  auto node = std::make_unique<Node>();
  node->values[0] = 9;
  const Node* const at = node.get();
  std::thread([&] { node.reset(); }).join();  // another thread may end it
  node = std::make_unique<Node>();
  EXPECT_EQ(node.get(), at);
  EXPECT_EQ(node->values[0], 1);
}

}  // namespace
}  // namespace kvern
