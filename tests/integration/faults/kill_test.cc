// Whoever dies while it copies leaves the old view whole, and what it said it did, done.
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "gtest/gtest.h"
#include "tests/integration/faults/engine_worker.h"
#include "tests/integration/faults/server_pool.h"

namespace kvern::faults {
namespace {

constexpr int kSets = 6;  // of destination blocks: as many calls write each for the first time
constexpr int64_t kTokens = 300;
constexpr int64_t kBudget = 150;

// Written by the one who copies, read by the one who kills.
struct Progress {
  std::atomic<int> started{0};  // calls
  std::atomic<int> done{0};     // calls that were answered APPLIED
};
static_assert(std::atomic<int>::is_always_lock_free);

// Progress that children share.
class SharedProgress {
 public:
  SharedProgress() {
    void* memory =
        mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) progress_ = new (memory) Progress;
  }
  ~SharedProgress() {
    if (progress_ != nullptr) munmap(progress_, sizeof(Progress));
  }
  Progress* Get() const { return progress_; }

 private:
  Progress* progress_ = nullptr;
};

void SpinFor(std::chrono::nanoseconds time) {
  const auto end = std::chrono::steady_clock::now() + time;
  while (std::chrono::steady_clock::now() < end) {
  }
}

// One source sequence, kSets places to copy it to, and what memory holds after each copy.
class KillTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NE(memory_.Data(), nullptr);
    for (int set = 0; set < kSets; ++set) {
      const auto first = static_cast<uint32_t>(20 + set * source_.size());
      destinations_.push_back(ScatteredBlocks(first, layout_.BlocksFor(kBudget), 2, 5 + set));
    }
    Image start = CanaryImage(layout_);
    WriteSequence(layout_, source_, kTokens, /*seed=*/7, &start);
    memory_.Restore(start);
    images_ = {start};
    // What an undisturbed copy keeps, and how long it takes: kills fall within about that time.
    auto engine = MakeEngine(layout_, memory_, "ref");
    ASSERT_TRUE(engine.ok()) << engine.status();
    const auto begin = std::chrono::steady_clock::now();
    const auto answer = (*engine)->CompressAndWait(JobOf(0));
    call_time_ = std::chrono::steady_clock::now() - begin;
    ASSERT_TRUE(answer.ok()) << answer.status();
    ASSERT_EQ(answer->results[0].outcome, engine::Outcome::kApplied) << answer->results[0].status;
    const KeptTokens kept = {answer->results[0].kept, kBudget};
    for (int set = 0; set < kSets; ++set) {
      images_.push_back(Moved(layout_, images_.back(), source_, destinations_[set], kept));
    }
    ASSERT_EQ(Difference(memory_.Now(), images_[1]), "");
  }

  // After the last set, calls write to it again.
  static int SetOf(int call) { return std::min(call, kSets - 1); }
  engine::CompressJob JobOf(int call) const {
    return CopyJob("s" + std::to_string(call), source_, kTokens, kBudget,
                   destinations_[SetOf(call)]);
  }

  // The worker process: copies until it is killed.
  [[noreturn]] void Work(const char* backend, Progress* progress) const {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    auto engine = MakeEngine(layout_, memory_, backend);
    if (!engine.ok()) _exit(1);
    for (int call = 0;; ++call) {
      progress->started.store(call + 1);
      const auto answer = (*engine)->CompressAndWait(JobOf(call));
      if (!answer.ok() || answer->results[0].outcome != engine::Outcome::kApplied) _exit(2);
      progress->done.store(call + 1);
    }
  }

  // Returns at a random point of a random call; false when `alive` says that nobody makes calls.
  template <class Alive>
  bool AwaitRandomPoint(const Progress& progress, Alive&& alive) {
    const int target = std::uniform_int_distribution<int>(1, kSets)(random_);
    std::uniform_int_distribution<int64_t> nanos(0, call_time_.count() * 3 / 2);
    const std::chrono::nanoseconds after(nanos(random_));
    while (progress.started.load() < target) {
      if (!alive()) return false;
      sched_yield();
    }
    SpinFor(after);
    return true;
  }

  // The source, all canaries and every set that no call wrote are as they were; every set whose
  // call was answered holds its copy; the set in between holds bytes of either.
  void ExpectWholeViews(const Progress& progress) {
    const Image now = memory_.Now();
    const int done = std::min(progress.done.load(), kSets);
    const int started = std::min(progress.started.load(), kSets);
    ASSERT_LE(started - done, 1);
    EXPECT_EQ(DifferenceFromBoth(now, images_[done], images_[started]), "")
        << done << " calls answered, " << started << " started";
    torn_ += now != images_[done] && now != images_[started] ? 1 : 0;
  }

  const PoolLayout layout_ =
      HeadMajorWithPadding({.head_dim = 64, .block_tokens = 16, .num_blocks = 160});
  const Blocks source_ = ScatteredBlocks(0, layout_.BlocksFor(kTokens), 1, /*seed=*/4);
  SharedMemory memory_{layout_.RegionBytes()};
  std::vector<Blocks> destinations_;
  std::vector<Image> images_;  // [kSets + 1]: after so many calls
  std::chrono::nanoseconds call_time_{0};
  std::mt19937 random_{11};
  int torn_ = 0;  // deaths amid a copy
};

TEST_F(KillTest, LeavesTheOldViewWholeWhereverAWorkerDies) {
  constexpr int kKills = 450;
  const SharedProgress shared;
  ASSERT_NE(shared.Get(), nullptr);
  for (int kill_number = 0; kill_number < kKills && !HasFailure(); ++kill_number) {
    SCOPED_TRACE(kill_number);
    memory_.Restore(images_[0]);
    Progress* progress = new (shared.Get()) Progress;
    const pid_t worker = fork();
    ASSERT_GE(worker, 0);
    if (worker == 0) Work(kill_number % 2 == 0 ? "ref" : "cpu", progress);
    int status = 0;
    const bool works =
        AwaitRandomPoint(*progress, [&] { return waitpid(worker, &status, WNOHANG) == 0; });
    ASSERT_TRUE(works) << "the worker ended by itself: " << status;
    kill(worker, SIGKILL);
    ASSERT_EQ(waitpid(worker, &status, 0), worker);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
    ExpectWholeViews(*progress);
  }
  RecordProperty("torn", torn_);
  EXPECT_GT(torn_, 0) << "no worker died amid a copy: this test did not test it";
}

// The frontend outlives 50 servers, and each next one serves the same memory.
TEST_F(KillTest, LeavesTheOldViewWholeWhereverAServerDies) {
  constexpr int kKills = 50;
  for (int kill_number = 0; kill_number < kKills && !HasFailure(); ++kill_number) {
    SCOPED_TRACE(kill_number);
    memory_.Restore(images_[0]);
    const auto server = support::ServerProcess::Start({"--store-bytes", "1048576"});
    ASSERT_NE(server, nullptr);
    const auto client = client::Client::Connect(server->Address());
    ASSERT_TRUE(client.ok()) << client.status();
    const auto pool = RegisterPool(*client, BrokerPath(*server), layout_, memory_);
    ASSERT_TRUE(pool.ok()) << pool.status();
    Progress progress;
    std::atomic<bool> calling{true};
    absl::Status last;
    std::thread caller([&] {
      CallCase call = {.blocks = source_, .tokens = kTokens, .budget = kBudget};
      while (last.ok()) {
        const int number = progress.started.load();
        call.sequence = "s" + std::to_string(number);
        call.destination = destinations_[SetOf(number)];
        progress.started.store(number + 1);
        const auto result = CompressOne(*client, RequestOf(*pool, call));
        last = result.ok() ? client::SequenceStatus(*result) : result.status();
        if (last.ok()) progress.done.store(number + 1);
      }
      calling.store(false);
    });
    const bool served = AwaitRandomPoint(progress, [&] { return calling.load(); });
    server->Signal(SIGKILL);
    EXPECT_EQ(server->Wait(), -SIGKILL);
    caller.join();
    EXPECT_TRUE(served);
    EXPECT_TRUE(absl::IsUnavailable(last)) << last;
    ExpectWholeViews(progress);
  }
  RecordProperty("torn", torn_);
}

}  // namespace
}  // namespace kvern::faults
