// The two proofs never accept what a count of every byte refuses.
#include "server/memory/footprint.h"

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace kvern::memory {
namespace {

// Times each byte is used by a view, counted one address at a time.
std::map<int64_t, int> CountBytes(int64_t base, int64_t element,
                                  const std::vector<ViewAxis>& axes) {
  std::vector<int64_t> starts = {base};
  for (const ViewAxis& axis : axes) {
    std::vector<int64_t> next;
    for (const int64_t start : starts) {
      for (int64_t i = 0; i < axis.extent; ++i) next.push_back(start + i * axis.stride_bytes);
    }
    starts = std::move(next);
  }
  std::map<int64_t, int> counts;
  for (const int64_t start : starts) {
    for (int64_t i = 0; i < element; ++i) ++counts[start + i];
  }
  return counts;
}

bool HasTwice(const std::map<int64_t, int>& counts) {
  return std::any_of(counts.begin(), counts.end(), [](const auto& c) { return c.second > 1; });
}
bool Meet(const std::map<int64_t, int>& a, const std::map<int64_t, int>& b) {
  return std::any_of(a.begin(), a.end(), [&](const auto& c) { return b.contains(c.first); });
}

std::vector<ViewAxis> RandomAxes(std::mt19937& random) {
  std::vector<ViewAxis> axes;
  for (int i = 0; i < 3; ++i) {
    const int64_t magnitude = 2 * static_cast<int64_t>(random() % 24);
    axes.push_back(
        {random() % 4 == 0 ? -magnitude : magnitude, 1 + static_cast<int64_t>(random() % 4)});
  }
  return axes;
}

TEST(Footprint, BoundsAreThoseOfTheBytesUsed) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 500; ++trial) {
    const std::vector<ViewAxis> axes = RandomAxes(random);
    const auto counts = CountBytes(1000, 2, axes);
    const Footprint footprint = FootprintOf(1000, 2, axes);
    EXPECT_EQ(static_cast<int64_t>(footprint.begin), counts.begin()->first);
    EXPECT_EQ(static_cast<int64_t>(footprint.end), counts.rbegin()->first + 1);
  }
}

TEST(Footprint, NeverCallsNestedWhatUsesAByteTwice) {
  std::mt19937 random(5);
  int nested = 0;
  for (int trial = 0; trial < 5000; ++trial) {
    const std::vector<ViewAxis> axes = RandomAxes(random);
    if (!FootprintOf(1000, 2, axes).nested) continue;
    ++nested;
    ASSERT_FALSE(HasTwice(CountBytes(1000, 2, axes))) << "trial " << trial;
  }
  EXPECT_GT(nested, 100);
}

TEST(Footprint, NeverCallsApartWhatSharesAByte) {
  std::mt19937 random(7);
  int apart = 0;
  for (int trial = 0; trial < 50000; ++trial) {
    const std::vector<ViewAxis> axes = RandomAxes(random);
    std::vector<ViewAxis> others = axes;
    if (trial % 3 == 0) others = RandomAxes(random);
    if (trial % 3 == 1) others[random() % 3].extent = 1 + static_cast<int64_t>(random() % 4);
    const int64_t shift = 2 * (static_cast<int64_t>(random() % 80) - 40);
    const Footprint a = FootprintOf(1000, 2, axes);
    const Footprint b = FootprintOf(1000 + shift, 2, others);
    if (!a.nested || !b.nested || !AreApart(a, b)) continue;
    ++apart;
    ASSERT_TRUE(AreApart(b, a));
    ASSERT_FALSE(Meet(CountBytes(1000, 2, axes), CountBytes(1000 + shift, 2, others)))
        << "trial " << trial;
  }
  EXPECT_GT(apart, 100);
}

// Every order of the six axes of a dense cache: [K|V, layer, block, head, token, dim].
TEST(Footprint, ProvesEveryAxisOrderOfADenseCacheSound) {
  const std::vector<int64_t> extents = {2, 3, 4, 2, 3, 2};
  std::vector<int> order = {0, 1, 2, 3, 4, 5};
  do {
    std::vector<int64_t> strides(6);
    int64_t stride = 2;
    for (int i = 5; i >= 0; --i) {
      strides[order[i]] = stride;
      stride *= extents[order[i]];
    }
    std::vector<Footprint> views;
    for (int64_t role = 0; role < 2; ++role) {
      for (int64_t layer = 0; layer < 3; ++layer) {
        const int64_t base = role * strides[0] + layer * strides[1];
        views.push_back(FootprintOf(
            base, 2, {{strides[2], 4}, {strides[3], 2}, {strides[4], 3}, {strides[5], 2}}));
        ASSERT_TRUE(views.back().nested);
      }
    }
    for (size_t a = 0; a < views.size(); ++a) {
      for (size_t b = 0; b < a; ++b) ASSERT_TRUE(AreApart(views[a], views[b]));
    }
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(Footprint, StaysExactAtTheEndsOfTheNumbers) {
  const Footprint up = FootprintOf(0, 2, {{INT64_MAX, INT64_MAX}});
  EXPECT_GT(up.end, Wide{INT64_MAX} * (INT64_MAX - 1));
  const Footprint down = FootprintOf(0, 2, {{INT64_MIN, 3}});
  EXPECT_LT(down.begin, Wide{INT64_MIN});
}

}  // namespace
}  // namespace kvern::memory
