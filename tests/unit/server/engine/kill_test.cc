// A server that dies at any failpoint leaves the frontend one whole view.
#include <sys/wait.h>

#include <csignal>

#include "tests/unit/server/engine/engine_fixture.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;

class KillTest : public EngineTest {
 protected:
  // Runs one call in a process of its own, over the same pool memory; answers its wait status.
  int RunInChild(const FailpointInfo& info, Placement placement) {
    shared_memory_ = pool_memory_;
    engine_.reset();  // no thread crosses the fork
    const pid_t child = fork();
    if (child == 0) {
      Start(Limits());
      SetFailpoint(info.point, FailAction::kAbort);
      RunOne(KeyNorm(6, placement), Paged("a"));
      _exit(0);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return status;
  }
};

TEST_F(KillTest, LeavesTheOldViewOfACopyWhole) {
  for (const FailpointInfo& info : Failpoints()) {
    if (info.effect == FailEffect::kPoisoned) continue;
    SCOPED_TRACE(info.name);
    const bool stores = info.point == Failpoint::kBeforeStoreCommit;
    const std::vector<std::byte> before = Snapshot();
    const int status = RunInChild(info, stores ? Placement::kToStore : Placement::kCopyTo);
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
    ExpectOnlyWritten(before, Snapshot(), {20, 21});
  }
}

TEST_F(KillTest, TouchesNoBlockOutsideTheTableOfACompaction) {
  const FailpointInfo& info = Failpoints()[static_cast<int>(Failpoint::kWithinCompactMove)];
  const std::vector<std::byte> before = Snapshot();
  const int status = RunInChild(info, Placement::kCompact);
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  ExpectOnlyWritten(before, Snapshot(), {9, 3, 12, 5, 7});
  EXPECT_NE(Snapshot(), before);
}

}  // namespace
}  // namespace kvern::engine
