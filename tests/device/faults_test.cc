// The device breaks at every call that a request makes, in every way: the answer says so in time,
// nothing is lost that was not being rewritten, and health tells.
//
// KVERN_FAULT_STRIDE: every how many-th call breaks; 1 is all of them.
#include <algorithm>
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
  return text == nullptr ? 7 : std::max<int64_t>(1, std::atoll(text));
}

class DeviceFaults : public DeviceTest {
 protected:
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

  void RunBroken(const CompressJob& asked, const Clean& clean, FaultKind kind, int64_t call) {
    Restart();
    const std::vector<std::byte> before = Snapshot();
    CompressJob job = asked;
    const absl::Duration patience = absl::Milliseconds(kind == FaultKind::kHang ? 50 : 5000);
    job.deadline = absl::Now() + patience;
    simt::Faults::Inject({kind, call, ""});
    const absl::Time start = absl::Now();
    const auto answer = engine_->CompressAndWait(job);
    EXPECT_LT(absl::Now() - start, patience + absl::Seconds(1));
    const absl::Status status = answer.ok() ? answer->results[0].status : answer.status();
    if (answer.ok() && answer->results[0].outcome == Outcome::kApplied) {
      EXPECT_EQ(Snapshot(), clean.memory);  // retried, or broken when all was done
      return;
    }
    ExpectSaidSo(status, kind);
    if (!absl::IsDataLoss(status)) {
      EXPECT_EQ(Snapshot(), before);
    }
    if (kind == FaultKind::kOutOfMemory) {
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

class EveryCanonicalJob : public DeviceFaults, public testing::WithParamInterface<int> {};

TEST_P(EveryCanonicalJob, FailsInTimeAndLosesNothingWhereverTheDeviceBreaks) {
  const CanonicalJob canonical = CanonicalJobs().at(GetParam());
  SCOPED_TRACE(canonical.name);
  const Clean clean = RunClean(canonical.job);
  ASSERT_GT(clean.calls, 0);
  for (const NamedKind& kind : kKinds) {
    // A hang costs its deadline each time.
    const int64_t stride = kind.kind == FaultKind::kHang ? 6 * Stride() : Stride();
    for (int64_t call = 1 + GetParam() % stride; call <= clean.calls; call += stride) {
      SCOPED_TRACE(absl::StrCat(kind.name, " at call ", call, " of ", clean.calls));
      RunBroken(canonical.job, clean, kind.kind, call);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, EveryCanonicalJob, testing::Range(0, 20));

}  // namespace
}  // namespace kvern::engine
