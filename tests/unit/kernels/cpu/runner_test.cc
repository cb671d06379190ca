// Every item runs once, on some worker, and the first error ends the round.
#include "kernels/cpu/runner.h"

#include <atomic>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace kvern::cpu {
namespace {

TEST(Runner, RunsEveryItemOnceWhateverTheThreads) {
  for (const int threads : {1, 2, 5}) {
    Runner runner(threads);
    EXPECT_EQ(runner.Threads(), threads);
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      const absl::Status status = runner.ForEach(count, [&](int64_t item, int worker) {
        EXPECT_GE(worker, 0);
        EXPECT_LT(worker, threads);
        ++runs[static_cast<size_t>(item)];
        return absl::OkStatus();
      });
      EXPECT_TRUE(status.ok());
      for (const auto& run : runs) EXPECT_EQ(run.load(), 1);
    }
  }
}

TEST(Runner, RunsNothingForANegativeCount) {
  Runner runner(2);
  EXPECT_TRUE(runner.ForEach(-1, [](int64_t, int) { return absl::InternalError("ran"); }).ok());
}

TEST(Runner, OneWorkerGoesInOrder) {
  Runner runner(1);
  std::vector<int64_t> order;
  ASSERT_TRUE(runner
                  .ForEach(50,
                           [&](int64_t item, int) {
                             order.push_back(item);
                             return absl::OkStatus();
                           })
                  .ok());
  std::vector<int64_t> expected(50);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(order, expected);
}

TEST(Runner, NoTwoItemsShareAWorkerAtOnce) {
  constexpr int kThreads = 4;
  Runner runner(kThreads);
  std::vector<std::atomic<int>> inside(kThreads);
  ASSERT_TRUE(runner
                  .ForEach(2000,
                           [&](int64_t, int worker) {
                             EXPECT_EQ(inside[static_cast<size_t>(worker)].fetch_add(1), 0);
                             *runner.ScratchOf(worker).Take<int>(1) = worker;
                             inside[static_cast<size_t>(worker)].fetch_sub(1);
                             return absl::OkStatus();
                           })
                  .ok());
}

TEST(Runner, ReturnsTheErrorAndStopsHandingOutItems) {
  for (const int threads : {1, 3}) {
    Runner runner(threads);
    std::atomic<int64_t> ran{0};
    const absl::Status status = runner.ForEach(1'000'000, [&](int64_t item, int) {
      ++ran;
      return item == 3 ? absl::DataLossError("three") : absl::OkStatus();
    });
    EXPECT_EQ(status, absl::DataLossError("three"));
    EXPECT_LT(ran.load(), 1'000'000);
    EXPECT_TRUE(runner.ForEach(10, [](int64_t, int) { return absl::OkStatus(); }).ok());
  }
}

TEST(Runner, SurvivesManyShortRounds) {
  Runner runner(3);
  std::atomic<int64_t> sum{0};
  for (int round = 0; round < 2000; ++round) {
    ASSERT_TRUE(runner
                    .ForEach(3,
                             [&](int64_t item, int) {
                               sum += item;
                               return absl::OkStatus();
                             })
                    .ok());
  }
  EXPECT_EQ(sum.load(), 2000 * 3);
}

class StopNow final : public StopCheck {
 public:
  absl::Status Check() const override { return absl::CancelledError("stop"); }
};

TEST(Runner, AsksTheBoundCheck) {
  Runner runner(2);
  EXPECT_TRUE(runner.Check().ok());
  const StopNow stop;
  runner.Bind(&stop);
  EXPECT_EQ(runner.ForEach(100, [&](int64_t, int) { return runner.Check(); }).code(),
            absl::StatusCode::kCancelled);
  runner.Bind(nullptr);
  EXPECT_TRUE(runner.Check().ok());
}

}  // namespace
}  // namespace kvern::cpu
