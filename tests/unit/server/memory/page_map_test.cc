// Against a plain array of flags, taking and freeing in any order.
#include "server/memory/page_map.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace kvern::memory {
namespace {

TEST(PageMap, TakesFromTheFrontAsOneRun) {
  PageMap map(10);
  const auto runs = map.Take(2, 3);
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].first, 0);
  EXPECT_EQ(runs[0].count, 6);
  EXPECT_EQ(map.FreePages(), 4);
}

TEST(PageMap, SpreadsPiecesOverHoles) {
  PageMap map(10);
  const PageRun first = map.Take(3, 1)[0];
  const PageRun middle = map.Take(2, 1)[0];
  ASSERT_EQ(middle.first, 3);
  map.Free(first);
  const auto runs = map.Take(2, 3);  // one in the hole of 3, two in the tail of 5
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].first, 0);
  EXPECT_EQ(runs[0].count, 2);
  EXPECT_EQ(runs[1].first, 5);
  EXPECT_EQ(runs[1].count, 4);
}

TEST(PageMap, ChangesNothingWhenItDoesNotFit) {
  PageMap map(10);
  const PageRun first = map.Take(3, 1)[0];
  map.Take(4, 1);
  map.Free(first);  // holes of 3 and 3
  EXPECT_FALSE(map.Fits(2, 3));
  EXPECT_TRUE(map.Take(2, 3).empty());
  EXPECT_TRUE(map.Take(4, 1).empty());
  EXPECT_EQ(map.FreePages(), 6);
  EXPECT_TRUE(map.Fits(3, 2));
}

TEST(PageMap, JoinsNeighboursOnBothSides) {
  PageMap map(9);
  const auto a = map.Take(3, 1)[0];
  const auto b = map.Take(3, 1)[0];
  const auto c = map.Take(3, 1)[0];
  map.Free(a);
  map.Free(c);
  map.Free(b);
  EXPECT_TRUE(map.Fits(9, 1));
}

TEST(PageMap, SurvivesDemandsNearTheEndOfTheNumbers) {
  const PageMap map(10);
  EXPECT_FALSE(map.Fits(INT64_MAX, 1));
  EXPECT_FALSE(map.Fits(1, INT64_MAX));
  EXPECT_FALSE(map.Fits(INT64_MAX, INT64_MAX));
}

TEST(PageMap, NeverGivesAPageTwice) {
  constexpr int64_t kPages = 200;
  std::mt19937 random(17);
  PageMap map(kPages);
  std::vector<bool> used(kPages, false);
  std::vector<std::vector<PageRun>> held;
  for (int step = 0; step < 5000; ++step) {
    if (random() % 2 == 0 && !held.empty()) {
      std::swap(held[random() % held.size()], held.back());
      for (const PageRun& run : held.back()) {
        for (int64_t page = run.first; page < run.first + run.count; ++page) used[page] = false;
        map.Free(run);
      }
      held.pop_back();
      continue;
    }
    const auto runs = map.Take(1 + random() % 7, 1 + random() % 5);
    for (const PageRun& run : runs) {
      for (int64_t page = run.first; page < run.first + run.count; ++page) {
        ASSERT_FALSE(used[page]) << "step " << step;
        used[page] = true;
      }
    }
    if (!runs.empty()) held.push_back(runs);
    ASSERT_EQ(map.FreePages(), std::count(used.begin(), used.end(), false));
  }
}

}  // namespace
}  // namespace kvern::memory
