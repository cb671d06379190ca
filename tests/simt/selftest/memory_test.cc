// Device memory ends at a fault, is never zero by luck, and other processes can map it.
#include "simt/memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "simt/build.h"
#include "simt/config.h"
#include "simt/device_array.h"
#include "simt/selftest/kernels.h"

namespace simt {
namespace {

class WithConfig {
 public:
  WithConfig() : before_(Current()) {}
  ~WithConfig() { Current() = before_; }

 private:
  Config before_;
};

TEST(DeviceMemory, StartsAsNaNAndEndsAtAPageThatFaults) {
  const DeviceAccess access;
  auto* bytes = static_cast<unsigned char*>(DeviceAlloc(512));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes) % 256, 0u);
  for (int i = 0; i < 512; ++i) EXPECT_EQ(bytes[i], 0xFF);
  EXPECT_DEATH(static_cast<volatile unsigned char*>(bytes)[512] = 1, "");
  EXPECT_TRUE(DeviceFree(bytes));
  EXPECT_FALSE(DeviceFree(bytes));
  EXPECT_TRUE(DeviceFree(nullptr));
}

TEST(DeviceMemory, KnowsItsAllocations) {
  auto* bytes = static_cast<std::byte*>(DeviceAlloc(1000));
  EXPECT_TRUE(IsDevice(bytes));
  EXPECT_TRUE(IsDevice(bytes + 999));
  EXPECT_FALSE(IsDevice(bytes + 1000));
  EXPECT_FALSE(IsDevice(bytes - 1));
  ASSERT_TRUE(FindAllocation(bytes + 500).has_value());
  EXPECT_EQ(FindAllocation(bytes + 500)->begin, bytes);
  EXPECT_EQ(FindAllocation(bytes + 500)->bytes, 1000u);
  int on_host = 0;
  EXPECT_FALSE(IsDevice(&on_host));
  DeviceFree(bytes);
  EXPECT_FALSE(IsDevice(bytes));
}

TEST(DeviceMemory, IsAsLargeAsConfigured) {
  const WithConfig restore;
  const size_t used = DeviceBytesUsed();
  Current().device_bytes = used + 1000;
  void* first = DeviceAlloc(600);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(DeviceBytesUsed(), used + 600);
  EXPECT_EQ(DeviceAlloc(600), nullptr);
  DeviceFree(first);
  void* second = DeviceAlloc(1000);
  EXPECT_NE(second, nullptr);
  DeviceFree(second);
}

TEST(DeviceMemory, HidesFromHostCodeIfAsked) {
  const WithConfig restore;
  Current().hide_device_memory = true;
  {
    const DeviceArray<uint32_t> out(64);
    selftest::RunDynamic(64, {out.data()});
    EXPECT_EQ(out.Copy()[0], 63u);
    EXPECT_DEATH(*static_cast<volatile uint32_t*>(out.data()) = 1, "");
  }
  Current().hide_device_memory = false;
  const DeviceArray<uint32_t> visible(std::vector<uint32_t>{1, 2});
  EXPECT_EQ(visible.data()[1], 2u);
}

TEST(DeviceMemory, IsSharedWithItsContentsAndAddress) {
  const DeviceArray<uint32_t> array(std::vector<uint32_t>{1, 2, 3});
  const auto shared = Share(array.data());
  ASSERT_TRUE(shared.has_value());
  const std::string path =
      "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(shared->fd);
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  const size_t bytes = shared->fd_offset + shared->bytes;
  void* mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  ASSERT_NE(mapping, MAP_FAILED);
  auto* other = reinterpret_cast<uint32_t*>(static_cast<std::byte*>(mapping) + shared->fd_offset);
  EXPECT_EQ(other[2], 3u);
  other[0] = 7;
  EXPECT_EQ(array.Copy()[0], 7u);
  EXPECT_EQ(Share(array.data())->fd, shared->fd);
  munmap(mapping, bytes);
  close(fd);
}

TEST(DeviceMemory, KernelsUseMappingsMadeElsewhere) {
  void* mapping = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(mapping, MAP_FAILED);
  RegisterDevice(mapping, 4096);
  EXPECT_TRUE(FindAllocation(mapping)->foreign);
  EXPECT_FALSE(DeviceFree(mapping));
  selftest::RunDynamic(64, {static_cast<uint32_t*>(mapping)});
  EXPECT_EQ(static_cast<uint32_t*>(mapping)[63], 0u);
  EXPECT_EQ(static_cast<uint32_t*>(mapping)[0], 63u);
  UnregisterDevice(mapping);
  EXPECT_FALSE(IsDevice(mapping));
  munmap(mapping, 4096);
}

}  // namespace
}  // namespace simt
