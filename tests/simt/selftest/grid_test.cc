// Schedules repeat, errors leave the emulator as it was, and launches that no GPU takes are
// refused.
#include "simt/grid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "simt/build.h"
#include "simt/config.h"
#include "simt/device_array.h"
#include "simt/machine.h"
#include "simt/selftest/kernels.h"

namespace simt::selftest {
namespace {

struct Trace {
  std::vector<int> order;  // threads and blocks as they ran
};

void Record(void* trace) {
  static_cast<Trace*>(trace)->order.push_back(static_cast<int>(machine.block) * 1024 +
                                              machine.current);
}

std::vector<int> TraceOf(Order order, uint64_t seed) {
  const Config before = Current();
  Current().order = order;
  Current().seed = seed;
  RestartGridNumbers();
  Trace trace;
  RunGrid({.blocks = 5, .threads = 70, .context_bytes = sizeof(trace)}, &Record, &trace);
  Current() = before;
  return trace.order;
}

Fault FaultOf(const GridShape& shape) {
  try {
    RunGrid(
        shape, [](void*) {}, nullptr);
  } catch (const Error& error) {
    return error.fault;
  }
  ADD_FAILURE() << "no error";
  return Fault::kMemory;
}

TEST(Grid, RunsEveryThreadOnceInTheOrderAskedFor) {
  const std::vector<int> forward = TraceOf(Order::kForward, 0);
  ASSERT_EQ(forward.size(), 350u);
  EXPECT_TRUE(std::is_sorted(forward.begin(), forward.end()));
  std::vector<int> reverse = TraceOf(Order::kReverse, 0);
  std::reverse(reverse.begin(), reverse.end());
  EXPECT_EQ(reverse, forward);
  std::vector<int> random = TraceOf(Order::kRandom, 7);
  EXPECT_NE(random, forward);
  EXPECT_EQ(random, TraceOf(Order::kRandom, 7));
  EXPECT_NE(random, TraceOf(Order::kRandom, 8));
  std::sort(random.begin(), random.end());
  EXPECT_EQ(random, forward);
}

TEST(Grid, RefusesShapesThatNoGpuTakes) {
  EXPECT_EQ(FaultOf({.blocks = 0, .threads = 32}), Fault::kResources);
  EXPECT_EQ(FaultOf({.blocks = int64_t{1} << 31, .threads = 32}), Fault::kResources);
  EXPECT_EQ(FaultOf({.blocks = 1, .threads = 1025}), Fault::kResources);
  EXPECT_EQ(FaultOf({.blocks = 1, .threads = 32, .shared_bytes = 228 << 10}), Fault::kResources);
}

TEST(Grid, RefusesMoreStaticSharedMemoryThanTheCompiler) {
  const DeviceArray<uint32_t> out(32);
  try {
    RunTooMuchShared({out.data()});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.fault, Fault::kResources) << error.what();
  }
}

TEST(Grid, NamesAThreadWhoseStackOverflowsAndGoesOn) {
  if (SIMT_ASAN) GTEST_SKIP() << "AddressSanitizer ends the process";
  const DeviceArray<uint32_t> out(std::vector<uint32_t>(32));
  for (int i = 0; i < 3; ++i) {
    try {
      RunDepth({out.data(), 1 << 20});
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.fault, Fault::kMemory);
      EXPECT_EQ(error.thread, 3);
      EXPECT_NE(std::string(error.what()).find("local memory"), std::string::npos) << error.what();
    }
    RunDepth({out.data(), 20});
    EXPECT_NE(out.Copy()[0], 0u);
  }
}

TEST(Grid, ManyThreadsOfTheHostTakeTurns) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      const DeviceArray<int32_t> in(std::vector<int32_t>(4096, 3));
      const DeviceArray<int64_t> out(16);
      for (int round = 0; round < 20; ++round) {
        RunSums(16, 256, {in.data(), out.data()});
        EXPECT_EQ(out.Copy(), std::vector<int64_t>(16, 768));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Grid, FaultsOfTheHostStayItsOwn) {
  const DeviceArray<uint32_t> out(64);
  RunDynamic(64, {out.data()});
  EXPECT_DEATH(*static_cast<volatile int*>(nullptr) = 1, "");
}

}  // namespace
}  // namespace simt::selftest
