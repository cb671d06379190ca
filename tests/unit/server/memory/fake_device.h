// A device whose memory no host may touch: its pages fault.
#ifndef KVERN_TESTS_UNIT_SERVER_MEMORY_FAKE_DEVICE_H_
#define KVERN_TESTS_UNIT_SERVER_MEMORY_FAKE_DEVICE_H_

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "server/memory/region.h"

namespace kvern::memory {

inline constexpr char kFakeUuid[] = "GPU-01234567-89ab-cdef-0123-456789abcdef";

// Has two allocations, which the first byte of a handle names: 0 and 1.
class FakeDevice {
 public:
  static constexpr int64_t kAllocationBytes = 1 << 16;

  FakeDevice() {
    void* memory =
        mmap(nullptr, 2 * kAllocationBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    memory_ = static_cast<std::byte*>(memory);
  }
  ~FakeDevice() {
    EXPECT_EQ(open, 0) << "mappings outlived the device";
    munmap(memory_, 2 * kAllocationBytes);
  }

  ImportDevice Import() {
    return [this](const DeviceHandle& handle) { return Open(handle); };
  }
  static DeviceHandle Handle(int allocation, int64_t offset, int64_t size) {
    DeviceHandle handle;
    handle.ipc[0] = static_cast<std::byte>(allocation);
    handle.device_uuid = kFakeUuid;
    handle.offset_bytes = offset;
    handle.size_bytes = size;
    return handle;
  }

  std::atomic<int> open = 0;  // mappings now
  std::vector<DeviceHandle> asked;

 private:
  class Mapping : public DeviceMapping {
   public:
    Mapping(FakeDevice* device, std::byte* data, int64_t bytes)
        : device_(device), data_(data), bytes_(bytes) {
      ++device_->open;
    }
    ~Mapping() override { --device_->open; }
    std::byte* Data() const override { return data_; }
    int64_t SizeBytes() const override { return bytes_; }

   private:
    FakeDevice* const device_;
    std::byte* const data_;
    const int64_t bytes_;
  };

  absl::StatusOr<std::unique_ptr<DeviceMapping>> Open(const DeviceHandle& handle) {
    asked.push_back(handle);
    const auto allocation = static_cast<int64_t>(handle.ipc[0]);
    if (handle.device_uuid != kFakeUuid) return Refused("GPU_NOT_VISIBLE");
    if (allocation > 1) return Refused("HANDLE_KIND_MISMATCH");
    if (handle.offset_bytes + handle.size_bytes > kAllocationBytes) {
      return Refused("REGION_OUT_OF_BOUNDS");
    }
    return std::make_unique<Mapping>(
        this, memory_ + allocation * kAllocationBytes + handle.offset_bytes, handle.size_bytes);
  }
  static absl::Status Refused(const char* reason) {
    return WithReason(absl::InvalidArgumentError("device memory: refused"), reason);
  }

  std::byte* memory_ = nullptr;
};

}  // namespace kvern::memory

#endif  // KVERN_TESTS_UNIT_SERVER_MEMORY_FAKE_DEVICE_H_
