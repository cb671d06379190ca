// Pools of device memory: the same checks, no host access, and a lease where nothing else tells
// that the owner died.
#include <atomic>
#include <chrono>
#include <thread>

#include "gmock/gmock.h"
#include "kernels/base/error_reason.h"
#include "server/memory/pool.h"
#include "tests/unit/server/memory/fake_device.h"
#include "tests/unit/server/memory/memfd.h"

namespace kvern::memory {
namespace {

using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr int64_t kPlaneBytes = 4096;  // of K or V: 4 blocks of 2 heads, 4 tokens, 64 dims, bf16
constexpr KvStrides kStrides = {1024, 512, 128, 2};

class DevicePoolTest : public ::testing::Test {
 protected:
  DevicePoolTest() { Start(/*lease_seconds=*/60); }
  void Start(int64_t lease_seconds) {
    limits_.pool_lease = lease_seconds;
    table_ = std::make_unique<PoolTable>(limits_, &attachments_, device_.Import());
    table_->OnLeaseEnd([this] { ++ended_; });
    attachments_.OnClose([this](int64_t connection) { table_->ExpireConnection(connection); });
  }
  static PoolSpec SpecOf(std::vector<RegionSource> regions) {
    PoolSpec spec;
    spec.id = "main";
    spec.kv_heads = 2;
    spec.head_dim = 64;
    spec.block_tokens = 4;
    spec.num_blocks = 4;
    spec.layers = {{0, {0, 0, kStrides}, {0, kPlaneBytes, kStrides}}};
    spec.regions = std::move(regions);
    return spec;
  }
  static PoolSpec Plain() { return SpecOf({FakeDevice::Handle(0, 256, 2 * kPlaneBytes)}); }
  AttachmentId AttachOnDevice(int64_t connection) {
    auto mapping = OpenOnDevice(device_.Import(), FakeDevice::Handle(1, 0, 2 * kPlaneBytes));
    EXPECT_TRUE(mapping.ok());
    return attachments_.Attach(Region::OnDevice(*std::move(mapping), getuid()), connection);
  }
  void ExpectRefused(const PoolSpec& spec, const std::string& field, const std::string& reason) {
    const absl::Status status = table_->Register(spec).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(FieldOf(status), field);
    EXPECT_EQ(ReasonOf(status), reason);
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
    EXPECT_EQ(device_.open, 0);
  }
  bool Eventually(const std::function<bool()>& done) {
    const auto deadline = Clock::now() + std::chrono::seconds(30);
    while (!done() && Clock::now() < deadline) std::this_thread::yield();
    return done();
  }

  FakeDevice device_;
  Limits limits_;
  AttachmentTable attachments_;
  std::atomic<int> ended_{0};
  std::unique_ptr<PoolTable> table_;
};

TEST_F(DevicePoolTest, RegistersAHandleAndMakesViewsOfItsMemory) {
  const auto pool = table_->Register(Plain());
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_TRUE((*pool)->leased);
  EXPECT_EQ((*pool)->mapped_bytes, 2 * kPlaneBytes);
  EXPECT_TRUE((*pool)->regions[0]->OnDevice());
  const std::vector<uint32_t> ids = {3};
  EXPECT_EQ((*pool)->Values(0, ids, 4).Address(0, 0),
            (*pool)->regions[0]->Data() + kPlaneBytes + 3 * kStrides.block);
  EXPECT_EQ(device_.open, 1);
}

TEST_F(DevicePoolTest, NamesTheFieldThatTheDeviceRefuses) {
  DeviceHandle other = FakeDevice::Handle(0, 0, 2 * kPlaneBytes);
  other.device_uuid.back() = '0';
  ExpectRefused(SpecOf({other}), "pool.regions[0].cuda_ipc.device_uuid", "GPU_NOT_VISIBLE");
  ExpectRefused(SpecOf({FakeDevice::Handle(7, 0, 2 * kPlaneBytes)}),
                "pool.regions[0].cuda_ipc.handle", "HANDLE_KIND_MISMATCH");
  const int64_t last = FakeDevice::kAllocationBytes - kPlaneBytes;
  ExpectRefused(
      SpecOf({FakeDevice::Handle(0, 0, kPlaneBytes), FakeDevice::Handle(0, last, kPlaneBytes + 1)}),
      "pool.regions[1].cuda_ipc.size_bytes", "REGION_OUT_OF_BOUNDS");
}

TEST_F(DevicePoolTest, ChecksStridesAsForHostMemory) {
  PoolSpec spec = Plain();
  spec.layers[0].v.base_offset += 2;
  ExpectRefused(spec, "pool.layers[0].v", "");
}

TEST_F(DevicePoolTest, RefusesBothSidesAtOnceAndOverlaps) {
  ExpectRefused(SpecOf({FakeDevice::Handle(0, 0, 2 * kPlaneBytes),
                        attachments_.Attach(MakeRegion(2 * kPlaneBytes), 1)}),
                "pool.regions", "");
  ExpectRefused(SpecOf({FakeDevice::Handle(0, 0, 2 * kPlaneBytes),
                        FakeDevice::Handle(0, 2 * kPlaneBytes - 16, kPlaneBytes)}),
                "pool.regions", "");
  EXPECT_TRUE(table_
                  ->Register(SpecOf({FakeDevice::Handle(0, 0, 2 * kPlaneBytes),
                                     FakeDevice::Handle(0, 2 * kPlaneBytes, kPlaneBytes)}))
                  .ok());
}

TEST_F(DevicePoolTest, RefusesHandlesWhereThereIsNoDevice) {
  PoolTable host(limits_, &attachments_);
  const absl::Status status = host.Register(Plain()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(status), "NO_DEVICE");
  EXPECT_EQ(FieldOf(status), "pool.regions[0].cuda_ipc");
}

TEST_F(DevicePoolTest, LivesByItsConnectionWhenTheBrokerTookItsMemory) {
  Start(/*lease_seconds=*/1);
  const auto pool = table_->Register(SpecOf({AttachOnDevice(/*connection=*/5)}));
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_FALSE((*pool)->leased);
  EXPECT_EQ(*table_->Renew("main"), 0);
  attachments_.Close(5);
  EXPECT_EQ(ReasonOf(table_->Find("main").status()), "POOL_EXPIRED");
  EXPECT_EQ(device_.open, 1) << "the holder keeps it mapped";
}

TEST_F(DevicePoolTest, EndsWithWhatEndsFirstWhenItHasBothKinds) {
  ASSERT_TRUE(
      table_->Register(SpecOf({FakeDevice::Handle(0, 0, 2 * kPlaneBytes), AttachOnDevice(5)}))
          .ok());
  EXPECT_EQ(*table_->Renew("main"), 60);
  attachments_.Close(5);
  EXPECT_EQ(ReasonOf(table_->Renew("main").status()), "POOL_EXPIRED");
  EXPECT_EQ(device_.open, 0);
}

TEST_F(DevicePoolTest, ExpiresWhenItsLeaseEndsAndIsUnmappedOnce) {
  Start(/*lease_seconds=*/1);
  const auto begin = Clock::now();
  ASSERT_TRUE(table_->Register(Plain()).ok());
  ASSERT_TRUE(Eventually([&] { return ended_ == 1; }));
  EXPECT_GE(Clock::now() - begin, std::chrono::seconds(1));
  EXPECT_EQ(device_.open, 0);
  EXPECT_TRUE(table_->List().empty());
  EXPECT_EQ(ReasonOf(table_->Renew("main").status()), "POOL_EXPIRED");
  EXPECT_FALSE(table_->Unregister("main"));
  EXPECT_TRUE(table_->Register(Plain()).ok()) << "its name is free again";
}

TEST_F(DevicePoolTest, LivesAsLongAsItIsRenewedAndNoLonger) {
  Start(/*lease_seconds=*/1);
  ASSERT_TRUE(table_->Register(Plain()).ok());
  PoolSpec forgotten = SpecOf({FakeDevice::Handle(1, 0, 2 * kPlaneBytes)});
  forgotten.id = "forgotten";
  ASSERT_TRUE(table_->Register(forgotten).ok());
  const auto begin = Clock::now();
  while (Clock::now() - begin < std::chrono::milliseconds(2500)) {
    ASSERT_EQ(*table_->Renew("main"), 1);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_FALSE(table_->Find("forgotten").ok());
  EXPECT_EQ(ended_, 1);
  ASSERT_TRUE(Eventually([&] { return ended_ == 2; }));
  EXPECT_FALSE(table_->Find("main").ok());
}

TEST_F(DevicePoolTest, HoldersKeepTheMappingAfterTheLease) {
  Start(/*lease_seconds=*/1);
  {
    const auto pool = table_->Register(Plain());
    ASSERT_TRUE(pool.ok());
    ASSERT_TRUE(Eventually([&] { return ended_ == 1; }));
    EXPECT_EQ(device_.open, 1);
  }
  EXPECT_EQ(device_.open, 0);
}

TEST(DeviceUuid, HasOneForm) {
  EXPECT_TRUE(IsDeviceUuid(kFakeUuid));
  EXPECT_TRUE(IsDeviceUuid("MIG-ABCDEF01-89ab-cdef-0123-456789abcdef"));
  for (const char* text :
       {"", "GPU-", "gpu-01234567-89ab-cdef-0123-456789abcdef",
        "GPU-01234567-89ab-cdef-0123-456789abcde", "GPU-01234567-89ab-cdef-0123-456789abcdef0",
        "GPU-01234567x89ab-cdef-0123-456789abcdef", "GPU-0123456g-89ab-cdef-0123-456789abcdef"}) {
    EXPECT_FALSE(IsDeviceUuid(text)) << text;
  }
}

}  // namespace
}  // namespace kvern::memory
