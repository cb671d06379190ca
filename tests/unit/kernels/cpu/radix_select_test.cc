// The counting threshold is that of a full sort.
#include "kernels/cpu/radix_select.h"

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace kvern::cpu {
namespace {

TEST(SelectThreshold, EqualsSorting) {
  std::mt19937_64 random(81);
  for (const uint32_t mask : {0xFFFFFFFFu, 0xFFE00000u, 0x001FFC00u, 0x3FFu, 3u, 0u}) {
    for (const size_t count : {1, 2, 17, 1000}) {
      std::vector<uint32_t> keys(count);
      for (uint32_t& key : keys) key = static_cast<uint32_t>(random()) & mask;
      std::vector<uint32_t> sorted = keys;
      std::sort(sorted.begin(), sorted.end(), std::greater<>());
      for (const int64_t k : {size_t{1}, (count + 1) / 2, count}) {
        const Threshold threshold = SelectThreshold(keys, k);
        const uint32_t want = sorted[k - 1];
        const int64_t above =
            std::count_if(keys.begin(), keys.end(), [&](uint32_t key) { return key > want; });
        EXPECT_EQ(threshold.key, want);
        EXPECT_EQ(threshold.taken, k - above);
        EXPECT_EQ(threshold.equal, std::count(keys.begin(), keys.end(), want));
      }
    }
  }
}

}  // namespace
}  // namespace kvern::cpu
