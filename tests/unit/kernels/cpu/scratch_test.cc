// What is taken is aligned, apart and kept until Reset; memory that is not there is an error.
#include "kernels/cpu/scratch.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"

// Sanitizers end the process at an absurd size where the allocator answers null.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

namespace kvern::cpu {
namespace {

bool IsAligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % Scratch::kAlign == 0;
}

TEST(Scratch, GivesAlignedPiecesThatDoNotOverlap) {
  Scratch scratch;
  for (int round = 0; round < 3; ++round) {
    scratch.Reset();
    std::vector<std::pair<uint8_t*, int64_t>> taken;
    for (int64_t count = 1; count < 300000; count = count * 3 + 1) {
      auto* data = scratch.Take<uint8_t>(count);
      ASSERT_NE(data, nullptr);
      EXPECT_TRUE(IsAligned(data));
      std::memset(data, static_cast<int>(taken.size()) + 1, static_cast<size_t>(count));
      taken.emplace_back(data, count);
    }
    for (size_t i = 0; i < taken.size(); ++i) {
      const auto [data, count] = taken[i];
      EXPECT_EQ(data[0], i + 1);
      EXPECT_EQ(data[count - 1], i + 1);
    }
    EXPECT_TRUE(scratch.Taken().ok());
  }
}

TEST(Scratch, CountsElementsNotBytes) {
  Scratch scratch;
  auto* first = scratch.Take<double>(100);
  auto* second = scratch.Take<double>(1);
  EXPECT_GE(reinterpret_cast<uintptr_t>(second) - reinterpret_cast<uintptr_t>(first),
            100 * sizeof(double));
}

TEST(Scratch, KeepsOnePieceForASteadyLoad) {
  Scratch scratch;
  const auto problem = [&] {
    scratch.Reset();
    auto* first = scratch.Take<float>(100'000);
    scratch.Take<float>(200'000);
    return first;
  };
  problem();
  const float* settled = problem();
  EXPECT_EQ(problem(), settled);
  EXPECT_EQ(problem(), settled);
}

TEST(Scratch, TakesNothingWithoutAnError) {
  Scratch scratch;
  scratch.Take<float>(0);
  EXPECT_TRUE(scratch.Taken().ok());
}

TEST(Scratch, ReportsMemoryThatIsNotThereAndRecovers) {
  Scratch scratch;
  EXPECT_EQ(scratch.Take<uint8_t>(int64_t{1} << 60), nullptr);
  EXPECT_EQ(scratch.Taken().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(scratch.Take<uint8_t>(64), nullptr);
  EXPECT_FALSE(scratch.Taken().ok());  // until Reset
  scratch.Reset();
  EXPECT_NE(scratch.Take<uint8_t>(64), nullptr);
  EXPECT_TRUE(scratch.Taken().ok());
}

}  // namespace
}  // namespace kvern::cpu
