// What calls lean on: peers, the shared buffer budget, the worker, the idle timer.
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "gtest/gtest.h"
#include "server/rpc/blocking_worker.h"
#include "server/rpc/byte_budget.h"
#include "server/rpc/idle_timer.h"
#include "server/rpc/peer.h"

namespace kvern::rpc {
namespace {

TEST(PeerIdentity, IsTheSameForEveryConnectionOfOnePeer) {
  EXPECT_EQ(PeerIdentity("unix:"), "unix");
  EXPECT_EQ(PeerIdentity("unix:/run/kvern/kvern.sock"), "unix");
  EXPECT_EQ(PeerIdentity("unix-abstract:x"), "unix");
  EXPECT_EQ(PeerIdentity("ipv4:127.0.0.1:5000"), "127.0.0.1");
  EXPECT_EQ(PeerIdentity("ipv6:%5B::1%5D:5000"), "[::1]");
  EXPECT_EQ(PeerIdentity("ipv6:[::1]:5000"), "[::1]");
  EXPECT_EQ(PeerIdentity("unknown"), "inproc");
  EXPECT_EQ(PeerIdentity(""), "");
}

TEST(ByteBudget, RefusesWhatOthersLeaveNoRoomFor) {
  ByteBudget budget(100);
  ByteBudget::Share first(&budget);
  ASSERT_TRUE(first.Take(60).ok());
  {
    ByteBudget::Share second(&budget);
    EXPECT_EQ(second.Take(41).code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(second.Take(40).ok());
    EXPECT_FALSE(first.Take(1).ok());
  }
  EXPECT_TRUE(first.Take(40).ok());
}

TEST(ByteBudget, LetsACallThatIsAloneExceedIt) {
  ByteBudget budget(100);
  {
    ByteBudget::Share only(&budget);
    EXPECT_TRUE(only.Take(90).ok());
    EXPECT_TRUE(only.Take(90).ok());
  }
  ByteBudget::Share first(&budget), second(&budget);
  EXPECT_TRUE(first.Take(1).ok());
  EXPECT_FALSE(second.Take(100).ok());
}

TEST(BlockingWorker, RunsTasksInOrderAndAllBeforeItEnds) {
  std::vector<int> order;
  {
    BlockingWorker worker(100);
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(worker.Post([&order, i] { order.push_back(i); }).ok());
  }
  ASSERT_EQ(order.size(), 50u);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(order[i], i);
}

TEST(BlockingWorker, RefusesWorkWhenTheQueueIsFull) {
  absl::Notification running, go;
  std::atomic<int> ran = 0;
  {
    BlockingWorker worker(2);
    ASSERT_TRUE(worker
                    .Post([&] {
                      running.Notify();
                      go.WaitForNotification();
                      ++ran;
                    })
                    .ok());
    running.WaitForNotification();
    EXPECT_TRUE(worker.Post([&] { ++ran; }).ok());
    EXPECT_TRUE(worker.Post([&] { ++ran; }).ok());
    EXPECT_EQ(worker.Post([&] { ++ran; }).code(), absl::StatusCode::kResourceExhausted);
    go.Notify();
  }
  EXPECT_EQ(ran, 3);
}

TEST(IdleTimer, FiresOnceWhenNothingHappens) {
  auto fired = std::make_shared<absl::Notification>();  // Notify aborts when called twice
  IdleTimer timer(absl::ZeroDuration(), [fired] { fired->Notify(); });
  fired->WaitForNotification();
  timer.Touch();
}

TEST(IdleTimer, LetsGoOfItsCallbackWhenStopped) {
  auto owned = std::make_shared<int>(0);
  absl::Notification released;
  {
    const std::shared_ptr<int> witness(owned.get(), [&, owned](int*) { released.Notify(); });
    IdleTimer timer(absl::Hours(1), [witness] { ++*witness; });
    timer.Stop();
  }
  released.WaitForNotification();
  EXPECT_EQ(*owned, 0);
}

}  // namespace
}  // namespace kvern::rpc
