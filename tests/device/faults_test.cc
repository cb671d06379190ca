// The device breaks at every call that a request makes, in every way: the answer says so in time,
// nothing is lost that was not being rewritten, and health tells.
//
// KVERN_FAULT_STRIDE: every how many-th call breaks; 1 is all of them. Each case wants a process in
// which nothing has used the device before, as ctest gives it. KVERN_FAULT_LEDGER: a file that gets
// a line per case, as faults_ledger.txt has them.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "absl/time/clock.h"
#include "tests/device/device_fixture.h"

namespace kvern::engine {
namespace {

using simt::FaultKind;

struct NamedKind {
  FaultKind kind;
  const char* name;
};
constexpr NamedKind kKinds[] = {{FaultKind::kOutOfMemory, "out of memory"},
                                {FaultKind::kIllegalAddress, "illegal address"},
                                {FaultKind::kEcc, "ECC"},
                                {FaultKind::kDeviceLost, "device lost"},
                                {FaultKind::kHang, "hang"}};

int64_t Stride() {
  const char* text = std::getenv("KVERN_FAULT_STRIDE");
  return text == nullptr ? 41 : std::max<int64_t>(1, std::atoll(text));
}

struct Tally {
  int64_t calls = 0;  // of the job, when nothing breaks
  int broken = 0;     // runs, each with one call that breaks
  int failed = 0;     // of them, those that a test could not accept
};
void WriteLedger(const std::string& job, const Tally& tally) {
  const char* path = std::getenv("KVERN_FAULT_LEDGER");
  std::FILE* file = path == nullptr ? nullptr : std::fopen(path, "a");
  if (file == nullptr) return;
  std::fprintf(file, "%-24s stride %d calls %3d broken %4d failed %d\n", job.c_str(),
               static_cast<int>(Stride()), static_cast<int>(tally.calls), tally.broken,
               tally.failed);
  std::fclose(file);
}

// One job in one process: first whole, then broken.
class BrokenRun : public DeviceTest {
 public:
  void TestBody() override {}

  // What the job leaves when nothing breaks.
  struct Clean {
    int64_t calls = 0;
    std::vector<std::byte> memory;
  };
  Clean RunClean(const CompressJob& job) {
    Restart();
    const int64_t before = simt::Faults::Calls();
    const auto answer = engine_->CompressAndWait(job);
    EXPECT_TRUE(answer.ok()) << answer.status();
    if (answer.ok()) {
      EXPECT_EQ(answer->results[0].outcome, Outcome::kApplied) << answer->results[0].status;
    }
    return {simt::Faults::Calls() - before, Snapshot()};
  }

  void Break(const CompressJob& asked, const Clean& clean, FaultKind kind, int64_t call) {
    Restart(kind == FaultKind::kHang ? 0.5 : 10);
    const std::vector<std::byte> before = Snapshot();
    CompressJob job = asked;
    const absl::Duration patience = absl::Milliseconds(kind == FaultKind::kHang ? 50 : 5000);
    job.deadline = absl::Now() + patience;
    simt::Faults::Inject({kind, call, ""});
    const absl::Time start = absl::Now();
    const int64_t calls_before = simt::Faults::Calls();
    const auto answer = engine_->CompressAndWait(job);
    EXPECT_LT(absl::Now() - start, patience + absl::Seconds(1));
    const absl::Status status = answer.ok() ? answer->results[0].status : answer.status();
    if (answer.ok() && answer->results[0].outcome == Outcome::kApplied) {
      EXPECT_EQ(Snapshot(), clean.memory);  // retried, or broken when all was done
      return;
    }
    ExpectSaidSo(status, kind);
    if (!absl::IsDataLoss(status)) {
      // A copy that failed may have begun to fill the blocks that the caller gave for it.
      const auto& blocks = std::get<PagedSource>(asked.sequences[0].source).destination_block_ids;
      ExpectOnlyWritten(before, Snapshot(), {blocks.begin(), blocks.end()});
    }
    // On a busy machine the deadline may come before the call that was to hang.
    const bool too_late =
        absl::IsDeadlineExceeded(status) && simt::Faults::Calls() - calls_before < call;
    if (kind == FaultKind::kOutOfMemory || too_late) {
      EXPECT_TRUE(engine_->Health().ok()) << engine_->Health();
      return;
    }
    EXPECT_FALSE(engine_->Health().ok());
    const int64_t calls = simt::Faults::Calls();
    const auto later = engine_->CompressAndWait(asked);
    EXPECT_TRUE(absl::IsUnavailable(later.status())) << later.status();
    EXPECT_EQ(ReasonOf(later.status()), "DEVICE_LOST");
    EXPECT_EQ(simt::Faults::Calls(), calls) << "a call touched the dead context";
  }

  static void ExpectSaidSo(const absl::Status& status, FaultKind kind) {
    std::set<absl::StatusCode> wanted = {absl::StatusCode::kInternal, absl::StatusCode::kDataLoss};
    if (kind == FaultKind::kOutOfMemory) wanted.insert(absl::StatusCode::kResourceExhausted);
    if (kind == FaultKind::kHang) wanted.insert(absl::StatusCode::kDeadlineExceeded);
    EXPECT_TRUE(wanted.contains(status.code())) << status;
    EXPECT_EQ(status.message().find("0x"), absl::string_view::npos) << "an address: " << status;
  }
};

// Runs `body` in a process of its own: what a lost device held is never given back, and CUDA does
// not live through a fork. True when nothing failed there.
bool InChild(const std::function<void(BrokenRun&)>& body) {
  const pid_t child = fork();
  if (child == 0) {
    {
      BrokenRun run;
      body(run);
    }
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
         WEXITSTATUS(status) == 0;
}

class EveryCanonicalJob : public testing::TestWithParam<int> {
 protected:
  static CanonicalJob JobOf(int number) { return BrokenRun::CanonicalJobs().at(number); }

  // Runtime calls of the job when nothing breaks.
  static int64_t CallsOf(int number) {
    auto* calls = static_cast<int64_t*>(
        mmap(nullptr, sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    EXPECT_TRUE(InChild([&](BrokenRun& run) { *calls = run.RunClean(JobOf(number).job).calls; }));
    const int64_t count = *calls;
    munmap(calls, sizeof(int64_t));
    return count;
  }
};

TEST_P(EveryCanonicalJob, FailsInTimeAndLosesNothingWhereverTheDeviceBreaks) {
  SCOPED_TRACE(JobOf(GetParam()).name);
  Tally tally = {.calls = CallsOf(GetParam())};
  ASSERT_GT(tally.calls, 0);
  for (const NamedKind& kind : kKinds) {
    // A hang costs its deadline each time: a sample has fewer.
    const bool sparse = kind.kind == FaultKind::kHang && Stride() > 1;
    const int64_t stride = sparse ? 3 * Stride() : Stride();
    for (int64_t call = 1 + GetParam() % stride; call <= tally.calls; call += stride) {
      const bool good = InChild([&](BrokenRun& run) {
        const CompressJob job = JobOf(GetParam()).job;
        run.Break(job, run.RunClean(job), kind.kind, call);
      });
      EXPECT_TRUE(good) << kind.name << " at call " << call << " of " << tally.calls;
      ++tally.broken;
      tally.failed += good ? 0 : 1;
    }
  }
  WriteLedger(JobOf(GetParam()).name, tally);
}
INSTANTIATE_TEST_SUITE_P(All, EveryCanonicalJob, testing::Range(0, 20));

}  // namespace
}  // namespace kvern::engine
