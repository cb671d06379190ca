// Pools of device memory: what goes through the broker, what goes with the description, and who
// keeps the lease.
#include "client/cpp/device_pool.h"

#include <sys/mman.h>

#include <cstring>

#include "absl/time/clock.h"
#include "client/cpp/broker_connection.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/client/fake_broker.h"
#include "tests/unit/client/fake_server.h"
#include "tests/unit/client/temporary_files.h"

namespace kvern::client {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr char kUuid[] = "GPU-01234567-89ab-cdef-0123-456789abcdef";

class DevicePoolTest : public TemporaryFiles {
 protected:
  DevicePoolTest() : server(PathOf("k.sock")) {
    server.info.set_broker_address("unix:/seen/by/the/server.broker.sock");
    described.set_model("models/m");
    described.add_regions();  // is replaced
  }
  Client Connect() { return *Client::Connect("unix:" + PathOf("k.sock")); }
  static DeviceRegion Handle() {
    return {.ipc_handle = std::string(64, 'h'),
            .device_uuid = kUuid,
            .offset_bytes = 32,
            .size_bytes = 4096};
  }
  absl::StatusOr<DevicePool> Register(const DeviceRegion& region) {
    return DevicePool::Register(Connect(), described, {&region, 1});
  }
  static bool Eventually(const std::function<bool()>& done) {
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    while (!done() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(5));
    return done();
  }
  FakeServer server;
  v1::Pool described;
};

TEST_F(DevicePoolTest, SendsAHandleWithTheDescription) {
  {
    const auto pool = Register(Handle());
    ASSERT_TRUE(pool.ok()) << pool.status();
    EXPECT_EQ(pool->Name(), "pools/1");
    EXPECT_EQ(server.pool.model(), "models/m");
    ASSERT_EQ(server.pool.regions_size(), 1);
    const v1::CudaIpc& ipc = server.pool.regions(0).cuda_ipc();
    EXPECT_EQ(ipc.handle(), std::string(64, 'h'));
    EXPECT_EQ(ipc.device_uuid(), kUuid);
    EXPECT_EQ(ipc.offset_bytes(), 32);
    EXPECT_EQ(ipc.size_bytes(), 4096);
    EXPECT_THAT(server.unregistered, IsEmpty());
  }
  EXPECT_THAT(server.unregistered, ElementsAre("pools/1"));
  EXPECT_EQ(server.renewals, 0);
}

TEST_F(DevicePoolTest, HandsAFileToTheBrokerAndNamesItsId) {
  FakeBroker broker(PathOf("k.broker.sock"));
  const int file = memfd_create("device", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, 8192), 0);
  {
    const auto pool =
        Register({.file = file, .device_uuid = kUuid, .offset_bytes = 48, .size_bytes = 4000});
    ASSERT_TRUE(pool.ok()) << pool.status();
    ASSERT_EQ(broker.magic.size(), 64u);
    EXPECT_EQ(broker.magic.substr(0, 44), std::string("KVD1") + kUuid);
    EXPECT_EQ(broker.magic.substr(44, 4), std::string(4, 0));
    int64_t numbers[2];
    std::memcpy(numbers, broker.magic.data() + 48, sizeof(numbers));
    EXPECT_THAT(numbers, ElementsAre(48, 4000));
    EXPECT_EQ(broker.memory_bytes, 8192u);
    EXPECT_EQ(server.pool.regions(0).attachment_id(), std::string(16, 'i'));
    EXPECT_FALSE(server.pool.regions(0).has_cuda_ipc());
  }
  close(file);
  broker.Join();  // ends when the socket closed
}

TEST_F(DevicePoolTest, RenewsItsLeaseThreeTimesAsOftenAsNecessary) {
  server.lease_seconds = 1;
  const auto pool = Register(Handle());
  ASSERT_TRUE(pool.ok()) << pool.status();
  const absl::Time begin = absl::Now();
  ASSERT_TRUE(Eventually([&] { return server.renewals >= 6; }));
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(1900));
  EXPECT_TRUE(pool->Renewed().ok());
}

TEST_F(DevicePoolTest, SaysThatThePoolExpiredAndStopsAsking) {
  server.lease_seconds = 1;
  server.renewals_granted = 1;
  const auto pool = Register(Handle());
  ASSERT_TRUE(pool.ok()) << pool.status();
  ASSERT_TRUE(Eventually([&] { return absl::IsNotFound(pool->Renewed()); }));
  absl::SleepFor(absl::Milliseconds(700));
  EXPECT_EQ(server.renewals, 2);
}

TEST_F(DevicePoolTest, TakesExactlyOneNameOfTheMemory) {
  DeviceRegion both = Handle();
  both.file = 1;
  for (const DeviceRegion& region : {both, DeviceRegion{.device_uuid = kUuid, .size_bytes = 1}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Register(region).status()));
  }
}

TEST_F(DevicePoolTest, SendsNoPacketWithAUuidOfAnotherForm) {
  FakeBroker broker(PathOf("k.broker.sock"));
  {
    auto connection = BrokerConnection::Connect(PathOf("k.broker.sock"), absl::Seconds(5));
    ASSERT_TRUE(connection.ok()) << connection.status();
    EXPECT_TRUE(absl::IsInvalidArgument(
        connection->AttachDevice({.file = 1, .device_uuid = "GPU-1", .size_bytes = 1}).status()));
  }
  broker.Join();
  EXPECT_EQ(broker.magic, "");
}

}  // namespace
}  // namespace kvern::client
