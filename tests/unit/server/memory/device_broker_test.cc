// Memory of the device through the broker: what its import refuses, the connection survives.
#include <fcntl.h>

#include <cstring>
#include <string>

#include "gtest/gtest.h"
#include "server/memory/unique_fd.h"
#include "tests/unit/server/memory/broker_fixture.h"
#include "tests/unit/server/memory/fake_device.h"
#include "tests/unit/server/memory/memfd.h"

namespace kvern::memory {
namespace {

using DeviceBrokerTest = HandleBrokerTest;

constexpr auto kInvalid = static_cast<uint32_t>(absl::StatusCode::kInvalidArgument);
constexpr auto kFailed = static_cast<uint32_t>(absl::StatusCode::kFailedPrecondition);

TEST_F(DeviceBrokerTest, AnswersAnIdForMemoryOfTheDevice) {
  FakeDevice device;
  Start(device.Import());
  {
    Client client(options_.path);
    const UniqueFd fd(MakeMemfd(4096, 0));
    client.Send(DevicePacket(32, 1000), {fd.Get()});
    const Reply reply = client.Receive();
    EXPECT_EQ(reply.status, 0u);
    const auto region = attachments_.Find(reply.id);
    ASSERT_TRUE(region.ok());
    EXPECT_TRUE((*region)->OnDevice());
    EXPECT_EQ((*region)->SizeBytes(), 1000);
    EXPECT_EQ((*region)->Owner(), getuid());
    ASSERT_EQ(device.asked.size(), 1u);
    EXPECT_EQ(device.asked[0].kind, DeviceHandle::Kind::kFile);
    EXPECT_NE(device.asked[0].file, fd.Get());
    EXPECT_LT(fcntl(device.asked[0].file, F_GETFD), 0) << "the descriptor was kept";
    EXPECT_EQ(device.asked[0].device_uuid, kFakeUuid);
    EXPECT_EQ(device.asked[0].offset_bytes, 32);
  }
  WaitForClosed(1);
  EXPECT_EQ(attachments_.Count(), 0);
}

TEST_F(DeviceBrokerTest, RefusesMemoryThatTheDeviceDoesAndGoesOn) {
  FakeDevice device;
  Start(device.Import());
  Client client(options_.path);
  const UniqueFd fd(MakeMemfd(4096, 0));
  std::string other = kFakeUuid;
  other.back() = '0';
  for (const std::string& packet :
       {DevicePacket(0, 1000, other), DevicePacket(0, 0), DevicePacket(-16, 1000),
        DevicePacket(8, 1000), DevicePacket(INT64_MAX - 15, INT64_MIN),
        DevicePacket(16, FakeDevice::kAllocationBytes)}) {
    client.Send(packet, {fd.Get()});
    const Reply refused = client.Receive();
    EXPECT_EQ(refused.status, kInvalid);
    EXPECT_EQ(refused.id, AttachmentId{});
  }
  EXPECT_EQ(client.Attach(4096).status, 0u);
  EXPECT_EQ(device.open, 0);
}

TEST_F(DeviceBrokerTest, RefusesDeviceMemoryWhereThereIsNoDevice) {
  Start();
  Client client(options_.path);
  const UniqueFd fd(MakeMemfd(4096, 0));
  client.Send(DevicePacket(0, 1000), {fd.Get()});
  EXPECT_EQ(client.Receive().status, kFailed);
  EXPECT_EQ(client.Attach(4096).status, 0u);
}

}  // namespace
}  // namespace kvern::memory
