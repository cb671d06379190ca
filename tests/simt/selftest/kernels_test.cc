// Good kernels give what they should, under every schedule.
#include "simt/selftest/kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <numeric>
#include <vector>

#include "simt/config.h"
#include "simt/device_array.h"

namespace simt::selftest {
namespace {

constexpr int kSeeds = 10;

using Run = void (*)(int threads, const Exchange& exchange);

// The results of `run` under all schedules, which have to agree.
std::vector<uint32_t> Results(Run run, int threads, int per_thread = 1) {
  std::vector<uint32_t> results;
  const ScheduleReport report = CheckSchedules(kSeeds, [&] {
    const DeviceArray<uint32_t> out(static_cast<size_t>(threads * per_thread));
    run(threads, {out.data()});
    results = out.Copy();
    return out.Bytes();
  });
  EXPECT_EQ(report.problem, "");
  EXPECT_EQ(report.schedules, kSeeds + 2);
  return results;
}

TEST(Kernels, SumByShufflesAndABarrier) {
  constexpr int kBlocks = 17;
  for (const int threads : {32, 256, 1024}) {
    std::vector<int32_t> values(static_cast<size_t>(kBlocks * threads));
    std::iota(values.begin(), values.end(), -1000);
    const DeviceArray<int32_t> in(values);
    const DeviceArray<int64_t> out(kBlocks);
    const ScheduleReport report = CheckSchedules(kSeeds, [&] {
      RunSums(kBlocks, threads, {in.data(), out.data()});
      return out.Bytes();
    });
    EXPECT_EQ(report.problem, "");
    for (int b = 0; b < kBlocks; ++b) {
      const auto first = values.begin() + b * threads;
      EXPECT_EQ(out.Copy()[static_cast<size_t>(b)],
                std::accumulate(first, first + threads, int64_t{0}));
    }
  }
}

TEST(Kernels, ExchangeThroughSharedMemory) {
  for (const uint32_t threads : {1u, 40u, 512u}) {
    const std::vector<uint32_t> got = Results(RunRotation, static_cast<int>(threads));
    for (uint32_t t = 0; t < threads; ++t) EXPECT_EQ(got[t], (t + 1) % threads * 10 + 3);
  }
}

TEST(Kernels, ExchangeThroughDynamicSharedMemory) {
  const std::vector<uint32_t> got = Results(RunDynamic, 96);
  for (uint32_t t = 0; t < 96; ++t) EXPECT_EQ(got[t], 95 - t);
}

TEST(Kernels, ExchangeWithinAWarp) {
  const std::vector<uint32_t> got = Results(RunWarpExchange, 64);
  for (uint32_t t = 0; t < 64; ++t) EXPECT_EQ(got[t], 3 * (t ^ 1) + 3);
}

TEST(Kernels, HalvesOfAWarpMeetSeparately) {
  const std::vector<uint32_t> got = Results(RunHalfWarps, 64);
  for (uint32_t t = 0; t < 64; ++t) EXPECT_EQ(got[t], t / 16 * 16 + 5 + t / 16 * 16 + 15);
}

TEST(Kernels, ShufflesTakeTheLaneThatTheyName) {
  const std::vector<uint32_t> got = Results(RunShuffles, 32, 4);
  for (uint32_t t = 0; t < 32; ++t) {
    EXPECT_EQ(got[4 * t], 31u);
    EXPECT_EQ(got[4 * t + 1], t == 0 ? 0 : t - 1);
    EXPECT_EQ(got[4 * t + 2], t % 8 + 3 < 8 ? t + 3 : t);
    EXPECT_EQ(got[4 * t + 3], t ^ 8);
  }
}

TEST(Kernels, VotesCount) {
  const std::vector<uint32_t> got = Results(RunVotes, 128);
  for (uint32_t t = 0; t < 128; ++t) {
    uint32_t thirds = 0;
    for (uint32_t lane = 0; lane < 32; ++lane) thirds += (t / 32 * 32 + lane) % 3 == 0;
    EXPECT_EQ(got[t], 64 * 1000 + thirds * 100 + 80 + (t < 32 ? 2 : 0) + 1 + 4) << t;
  }
}

TEST(Kernels, CountWithAtomics) {
  std::vector<uint8_t> values(5000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint8_t>(i * i);
  const DeviceArray<uint8_t> in(values);
  std::vector<uint32_t> expected(256);
  for (const uint8_t value : values) ++expected[value];
  const ScheduleReport report = CheckSchedules(kSeeds, [&] {
    const DeviceArray<uint32_t> out(std::vector<uint32_t>(256));
    RunHistogram(3, 96, {in.data(), out.data(), 5000});
    EXPECT_EQ(out.Copy(), expected);
    return out.Bytes();
  });
  EXPECT_EQ(report.problem, "");
}

}  // namespace
}  // namespace simt::selftest
