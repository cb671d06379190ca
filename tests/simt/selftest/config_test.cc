// The configuration obeys the environment and survives the comparison of schedules.
#include "simt/config.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "simt/grid.h"

namespace simt {
namespace {

using Bytes = std::vector<unsigned char>;

// In a process that has not read its configuration yet.
void ExitWithOrder(const char* name, const char* value) {
  for (const char* other : {"KVERN_SIMT_ORDER", "KVERN_SIMT_SEED"}) unsetenv(other);
  setenv(name, value, 1);
  std::exit(static_cast<int>(Current().order) * 10 + static_cast<int>(Current().seed));
}

TEST(Config, ComesFromTheEnvironment) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(ExitWithOrder("KVERN_SIMT_ORDER", "reverse"), testing::ExitedWithCode(10), "");
  EXPECT_EXIT(ExitWithOrder("KVERN_SIMT_SEED", "7"), testing::ExitedWithCode(7), "");
}

TEST(Config, RejectsWordsThatItDoesNotKnow) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(ExitWithOrder("KVERN_SIMT_ORDER", "backwards"), "KVERN_SIMT_ORDER=backwards");
  EXPECT_DEATH(ExitWithOrder("KVERN_SIMT_SEED", "x"), "KVERN_SIMT_SEED=x");
  EXPECT_DEATH(ExitWithOrder("KVERN_SIMT_STREAMS", "busy"), "KVERN_SIMT_STREAMS=busy");
}

TEST(CheckSchedules, RunsForwardReverseAndSeeds) {
  std::vector<Order> orders;
  std::vector<uint64_t> seeds;
  const Config before = Current();
  const ScheduleReport report = CheckSchedules(3, [&] {
    orders.push_back(Current().order);
    seeds.push_back(Current().seed);
    return Bytes{1, 2};
  });
  EXPECT_TRUE(report.clean());
  EXPECT_EQ(report.schedules, 5);
  EXPECT_EQ(orders, (std::vector<Order>{Order::kForward, Order::kReverse, Order::kRandom,
                                        Order::kRandom, Order::kRandom}));
  EXPECT_EQ(seeds[3], seeds[2] + 1);
  EXPECT_EQ(Current().order, before.order);
  EXPECT_EQ(Current().seed, before.seed);
}

TEST(CheckSchedules, ReportsTheFirstDifference) {
  const ScheduleReport report = CheckSchedules(5, [&] {
    return Current().order == Order::kRandom ? Bytes{1, 2, 9} : Bytes{1, 2, 3};
  });
  EXPECT_EQ(report.schedules, 3);
  EXPECT_NE(report.problem.find("1 of 3 bytes differ"), std::string::npos) << report.problem;
  EXPECT_NE(report.problem.find("first at 2"), std::string::npos) << report.problem;
}

TEST(CheckSchedules, ReportsErrorsAndRestoresTheConfiguration) {
  const Config before = Current();
  const ScheduleReport report =
      CheckSchedules(5, []() -> Bytes { throw Error(Fault::kRace, "a race", 0, 0); });
  EXPECT_EQ(report.problem, "a race");
  EXPECT_EQ(Current().seed, before.seed);
  EXPECT_EQ(Current().order, before.order);
}

}  // namespace
}  // namespace simt
