// Nothing but ops of the backend touches the bytes of a pool on the device: here they fault for the
// host, and every way of placing an answer gives what it gives over host memory.
#include <cuda_runtime_api.h>

#include "gtest/gtest.h"
#include "simt/config.h"
#include "tests/device/device_fixture.h"

namespace kvern::engine {
namespace {

// Of this process, which the emulator hides unlike memory of others.
class HiddenMapping : public DeviceMapping {
 public:
  explicit HiddenMapping(int64_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), bytes), cudaSuccess);
  }
  ~HiddenMapping() override { EXPECT_EQ(cudaFree(data_), cudaSuccess); }
  std::byte* Data() const override { return data_; }
  int64_t SizeBytes() const override { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  const int64_t bytes_;
};

class HiddenMemoryTest : public DeviceTest {
 protected:
  HiddenMemoryTest() { simt::Current().hide_device_memory = true; }
  ~HiddenMemoryTest() override {
    hidden_.reset();
    engine_.reset();
    simt::Current().hide_device_memory = false;
  }
  // An engine with the pool "pool" on the host and an equal one, "hidden", on the device.
  void StartWithBoth() {
    hidden_.reset();
    make_backend_ = [] {
      return MakeBackend({.name = "cuda", .scratch_bytes = int64_t{48} << 20}).value();
    };
    Start(Limits());
    hidden_ = memory::Region::OnDevice(std::make_unique<HiddenMapping>(pool_memory_->SizeBytes()),
                                       getuid());
    const std::vector<std::byte> bytes = Snapshot();
    ASSERT_EQ(cudaMemcpy(hidden_->Data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice),
              cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    AddPool("hidden", [&](memory::PoolSpec* spec) {
      spec->regions = {engine_->Attachments().Attach(hidden_, kConnection)};
    });
  }
  std::vector<std::byte> HiddenSnapshot() const {
    std::vector<std::byte> bytes(static_cast<size_t>(hidden_->SizeBytes()));
    EXPECT_EQ(cudaMemcpy(bytes.data(), hidden_->Data(), bytes.size(), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return bytes;
  }
  std::shared_ptr<memory::Region> hidden_;
};

TEST_F(HiddenMemoryTest, FaultsForTheHost) {
  StartWithBoth();
  GTEST_FLAG_SET(death_test_style, "fast");
  EXPECT_DEATH(static_cast<volatile std::byte*>(hidden_->Data())[0] = std::byte{1}, "");
}

TEST_F(HiddenMemoryTest, GivesTheSameBytesInEveryPlacement) {
  for (const CanonicalJob& canonical : CanonicalJobs()) {
    SCOPED_TRACE(canonical.name);
    StartWithBoth();
    CompressJob over_hidden = canonical.job;
    PagedOf(over_hidden.sequences[0]).pool = "hidden";
    over_hidden.sequences[0].sequence_id = "h";
    const auto want = engine_->CompressAndWait(canonical.job);
    const auto got = engine_->CompressAndWait(over_hidden);
    ASSERT_TRUE(want.ok()) << want.status();
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(got->results[0].status.ok()) << got->results[0].status;
    EXPECT_EQ(got->results[0].outcome, want->results[0].outcome);
    EXPECT_EQ(got->results[0].kept, want->results[0].kept);
    EXPECT_EQ(got->results[0].positions, want->results[0].positions);
    EXPECT_TRUE(HiddenSnapshot() == Snapshot()) << "bytes of the pools differ";
  }
}

}  // namespace
}  // namespace kvern::engine
