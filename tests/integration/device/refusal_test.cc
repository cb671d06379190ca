// Device memory that the server cannot have is refused by name and reason, and leaves nothing.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/integration/device/device_memory.h"

namespace kvern::device {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kHeadDim = 64;
constexpr char kOtherUuid[] = "GPU-00000000-1111-2222-3333-444444444444";

struct Bad {
  std::string name;
  std::function<void(client::DeviceRegion*)> spoil;
  std::string field, reason;
};

class RefusalTest : public testing::Test {
 protected:
  void StartWith(const std::vector<std::string>& flags) {
    auto serving = Serving::Start(flags, kHeadDim);
    ASSERT_TRUE(serving) << "kvernd did not start";
    serving_ = *std::move(serving);
    mapped_ = serving_.process->MappedMemfds();
  }
  absl::Status Register(const client::DeviceRegion& region) {
    return client::DevicePool::Register(*serving_.client, DescriptionOf(layout_, serving_.model),
                                        {&region, 1})
        .status();
  }
  void ExpectNothingLeft() {
    EXPECT_EQ(serving_.process->MappedMemfds(), mapped_);
    EXPECT_EQ(serving_.Metric("kvern_pools"), 0);
    EXPECT_TRUE(serving_.client->Ping().ok());
  }

  const faults::PoolLayout layout_ = faults::HeadMajorWithPadding({.head_dim = kHeadDim});
  Serving serving_;
  int mapped_ = 0;
};

TEST_F(RefusalTest, NamesWhatIsWrongWithAHandle) {
  ASSERT_NO_FATAL_FAILURE(StartWith(OnDevice()));
  const DeviceMemory memory(Kind::kIpcHandle, layout_.RegionBytes());
  using Region = client::DeviceRegion;
  const int64_t end = memory.AllocationBytes();
  const Bad cases[] = {
      {"another device", [](Region* region) { region->device_uuid = kOtherUuid; }, "device_uuid",
       "GPU_NOT_VISIBLE"},
      {"no handle of anything", [](Region* region) { region->ipc_handle.assign(64, 'h'); },
       "handle", "HANDLE_KIND_MISMATCH"},
      {"a handle cut short", [](Region* region) { region->ipc_handle.resize(32); }, "handle", ""},
      {"one byte too many",
       [&](Region* region) { region->size_bytes = end - region->offset_bytes + 1; }, "size_bytes",
       "REGION_OUT_OF_BOUNDS"},
      {"behind the allocation", [&](Region* region) { region->offset_bytes = end; }, "size_bytes",
       "REGION_OUT_OF_BOUNDS"},
      {"far behind", [&](Region* region) { region->offset_bytes = int64_t{1} << 60; }, "size_bytes",
       "REGION_OUT_OF_BOUNDS"},
      {"before it", [](Region* region) { region->offset_bytes = -16; }, "offset_bytes", ""},
      {"not aligned", [](Region* region) { region->offset_bytes += 8; }, "offset_bytes", ""},
      {"empty", [](Region* region) { region->size_bytes = 0; }, "size_bytes", ""},
  };
  for (const Bad& bad : cases) {
    SCOPED_TRACE(bad.name);
    client::DeviceRegion region = memory.Region(serving_.device_uuid);
    bad.spoil(&region);
    const absl::Status status = Register(region);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_EQ(FieldOf(status), "pool.regions[0].cuda_ipc." + bad.field) << status;
    EXPECT_EQ(ReasonOf(status), bad.reason) << status;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("hhhh")));
  }
  ExpectNothingLeft();
  EXPECT_THAT(serving_.process->Log(), Not(HasSubstr("hhhh")));
  const absl::Status good = Register(memory.Region(serving_.device_uuid));
  EXPECT_TRUE(good.ok()) << good;
}

// Whatever a handle provokes in the driver, the next client is served.
TEST_F(RefusalTest, OutlivesHandlesThatWereTamperedWith) {
  ASSERT_NO_FATAL_FAILURE(StartWith(OnDevice()));
  const DeviceMemory memory(Kind::kIpcHandle, layout_.RegionBytes());
  for (size_t at = 0; at < 64; ++at) {
    for (const char mask : {1, 64, -1}) {
      SCOPED_TRACE(at);
      client::DeviceRegion region = memory.Region(serving_.device_uuid);
      region.ipc_handle[at] = static_cast<char>(region.ipc_handle[at] ^ mask);
      const absl::Status status = Register(region);  // some bytes say nothing: those may open
      EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
    }
  }
  ExpectNothingLeft();
  const absl::Status good = Register(memory.Region(serving_.device_uuid));
  EXPECT_TRUE(good.ok()) << good;
}

TEST_F(RefusalTest, OfAFileComesFromTheBroker) {
  ASSERT_NO_FATAL_FAILURE(StartWith(OnDevice()));
  const DeviceMemory memory(Kind::kFile, layout_.RegionBytes());
  const DeviceMemory other(Kind::kFile, layout_.RegionBytes());
  using Region = client::DeviceRegion;
  const int pipe_end = memfd_create("no allocation", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  const Bad cases[] = {
      {"another device", [](Region* region) { region->device_uuid = kOtherUuid; }, "", ""},
      {"no allocation", [&](Region* region) { region->file = pipe_end; }, "", ""},
      {"too large", [](Region* region) { region->size_bytes = int64_t{1} << 40; }, "", ""},
      {"before it", [](Region* region) { region->offset_bytes = -16; }, "", ""},
      {"not aligned", [](Region* region) { region->offset_bytes += 8; }, "", ""},
      {"empty", [](Region* region) { region->size_bytes = 0; }, "", ""},
  };
  for (const Bad& bad : cases) {
    SCOPED_TRACE(bad.name);
    client::DeviceRegion region = memory.Region(serving_.device_uuid);
    bad.spoil(&region);
    const absl::Status status = Register(region);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  }
  close(pipe_end);
  ExpectNothingLeft();
  const absl::Status good = Register(memory.Region(serving_.device_uuid));
  EXPECT_TRUE(good.ok()) << good;
}

TEST_F(RefusalTest, MixesNoHostMemoryAndCountsNoByteTwice) {
  ASSERT_NO_FATAL_FAILURE(StartWith(OnDevice()));
  const DeviceMemory memory(Kind::kIpcHandle, layout_.RegionBytes());
  const faults::SharedMemory host(layout_.RegionBytes());
  auto broker =
      client::BrokerConnection::Connect(faults::BrokerPath(*serving_.process), absl::Seconds(30));
  ASSERT_TRUE(broker.ok()) << broker.status();
  const auto attachment = broker->Attach(host.Descriptor());
  ASSERT_TRUE(attachment.ok()) << attachment.status();
  const client::DeviceRegion region = memory.Region(serving_.device_uuid);
  const auto add_handle = [&](v1::Pool* pool) {
    v1::CudaIpc* ipc = pool->add_regions()->mutable_cuda_ipc();
    ipc->set_handle(region.ipc_handle);
    ipc->set_device_uuid(region.device_uuid);
    ipc->set_offset_bytes(region.offset_bytes);
    ipc->set_size_bytes(region.size_bytes);
  };
  v1::Pool mixed = DescriptionOf(layout_, serving_.model);
  add_handle(&mixed);
  mixed.add_regions()->set_attachment_id(*attachment);
  v1::Pool twice = DescriptionOf(layout_, serving_.model);
  add_handle(&twice);
  add_handle(&twice);
  for (const v1::Pool& pool : {mixed, twice}) {
    const absl::Status status = serving_.client->RegisterPool(pool).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_EQ(FieldOf(status), "pool.regions");
  }
}

TEST_F(RefusalTest, OfAHostBackendSaysThatItHasNoDevice) {
  ASSERT_NO_FATAL_FAILURE(StartWith({"--backend", "cpu"}));
  for (const Kind kind : kKinds) {
    SCOPED_TRACE(Name(kind));
    const DeviceMemory memory(kind, layout_.RegionBytes());
    const absl::Status status = Register(memory.Region(kOtherUuid));
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    if (kind == Kind::kIpcHandle) {
      EXPECT_EQ(ReasonOf(status), "NO_DEVICE");
    }
  }
  ExpectNothingLeft();
}

TEST_F(RefusalTest, TakesNoHandleOverTcp) {
  std::vector<std::string> flags = OnDevice();
  flags.insert(flags.end(), {"--listen", "127.0.0.1:0"});
  ASSERT_NO_FATAL_FAILURE(StartWith(flags));
  const std::string log = serving_.process->Log();
  const size_t at = log.find("127.0.0.1:");
  ASSERT_NE(at, std::string::npos) << log;
  const auto tcp = client::Client::Connect(log.substr(at, log.find_first_of(",; ", at) - at));
  ASSERT_TRUE(tcp.ok()) << tcp.status();
  const DeviceMemory memory(Kind::kIpcHandle, layout_.RegionBytes());
  const client::DeviceRegion region = memory.Region(serving_.device_uuid);
  const absl::Status status =
      client::DevicePool::Register(*tcp, DescriptionOf(layout_, serving_.model), {&region, 1})
          .status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_EQ(FieldOf(status), "pool.regions[0]");
  ExpectNothingLeft();
}

}  // namespace
}  // namespace kvern::device
