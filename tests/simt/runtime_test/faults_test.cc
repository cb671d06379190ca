// Launch checks, injected faults, kernel bugs, memory and what was counted.
#include "simt/runtime/faults.h"

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "simt/runtime_test/runtime_fixture.h"

namespace simt {
namespace {

using FaultsTest = RuntimeTest;
using LaunchTest = RuntimeTest;
using MemoryTest = RuntimeTest;
// Tests of the environment, named Environment, let only the new process use a runtime.

TEST_F(LaunchTest, ChecksTheShape) {
  EXPECT_EQ(LaunchThreads(0, 32), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchThreads(int64_t{1} << 31, 32), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchThreads(1, 1025), cudaErrorInvalidConfiguration);
  EXPECT_EQ(LaunchThreads(1, 1024), cudaSuccess);
}

TEST_F(LaunchTest, WantsLeaveForMuchSharedMemory) {
  EXPECT_EQ(LaunchWithShared(48 << 10, nullptr), cudaSuccess);
  EXPECT_EQ(LaunchWithShared((48 << 10) + 1, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(AllowSharedBytesOfKernel((227 << 10) + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(AllowSharedBytesOfKernel(227 << 10), cudaSuccess);
  EXPECT_EQ(LaunchWithShared(227 << 10, nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(LaunchTest, ReturnsAnErrorThatNobodyAskedFor) {
  const Stream stream;
  const DeviceInts device(1);
  ASSERT_EQ(cudaMemsetAsync(device.get(), 0, 4, stream.get()), cudaSuccess);
  ASSERT_EQ(cudaStreamQuery(stream.get()), cudaErrorNotReady);
  EXPECT_EQ(LaunchAdd(device.get(), 1, 1, stream.get()), cudaErrorNotReady);
  EXPECT_EQ(Read(device.get(), 1, stream.get()), std::vector<int>{1}) << "launched all the same";
}

TEST_F(LaunchTest, CountsByName) {
  const auto count = [] { return LaunchCounts()["simt::(anonymous namespace)::AddKernel"]; };
  const int64_t before = count();
  const int64_t all_before = LaunchCount();
  const DeviceInts device(1);
  ASSERT_EQ(LaunchAdd(device.get(), 1, 1, nullptr), cudaSuccess);
  ASSERT_EQ(LaunchThreads(1, 1), cudaSuccess);
  EXPECT_EQ(count(), before + 1);
  EXPECT_EQ(LaunchCount(), all_before + 2);
}

TEST_F(FaultsTest, OutOfMemoryFailsOneCallAlone) {
  Faults::Inject({FaultKind::kOutOfMemory, 2, "cudaMalloc"});
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, 16), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&memory, 16), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  ASSERT_EQ(cudaMalloc(&memory, 16), cudaSuccess);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

TEST_F(FaultsTest, OthersStayForEver) {
  const std::pair<const char*, cudaError_t> kSticky[] = {
      {"illegal_address", cudaErrorIllegalAddress},
      {"ecc", cudaErrorECCUncorrectable},
      {"launch_failure", cudaErrorLaunchFailure},
      {"device_lost", cudaErrorDevicesUnavailable},
  };
  for (const auto& [kind, error] : kSticky) {
    SCOPED_TRACE(kind);
    const Stream stream;
    const DeviceInts device(1);
    ASSERT_TRUE(Faults::InjectAll(std::string(kind) + ":2"));
    EXPECT_EQ(cudaMemsetAsync(device.get(), 0, 4, stream.get()), cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream.get()), error);
    EXPECT_EQ(LaunchAdd(device.get(), 1, 1, stream.get()), error);
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, 4), error);
    EXPECT_EQ(cudaGetLastError(), error);
    EXPECT_EQ(cudaGetLastError(), error);
    Faults::Clear();
    EXPECT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
  }
}

TEST_F(FaultsTest, AHungStreamIsNeverReadyAndOthersGoOn) {
  const Stream hung, fine;
  const DeviceInts device(2);
  Faults::Inject({FaultKind::kHang, 1, "cudaLaunchKernel"});
  ASSERT_EQ(cudaMemsetAsync(device.get(), 0, 8, fine.get()), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(fine.get()), cudaSuccess);
  ASSERT_EQ(LaunchAdd(device.get(), 1, 1, hung.get()), cudaSuccess);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(cudaStreamQuery(hung.get()), cudaErrorNotReady);
  cudaGetLastError();
  ASSERT_EQ(LaunchAdd(device.get() + 1, 1, 1, fine.get()), cudaSuccess);
  EXPECT_EQ(Read(device.get(), 2, fine.get()), (std::vector<int>{0, 1}));
  Faults::Clear();
}

TEST(Environment, WaitingForAHungStreamAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        setenv("KVERN_SIMT_HANG_SECONDS", "1", 1);
        setenv("KVERN_SIMT_FAULT", "hang:1@cudaLaunchKernel", 1);
        LaunchThreads(1, 1);
        cudaDeviceSynchronize();
      },
      "waited 1 s for a stream that hangs");
}

TEST_F(FaultsTest, AreReadStrictly) {
  for (const char* text : {"", "ecc", "ecc:", "ecc:0", "ecc:x", "ecc:1x", "fire:1", "ecc:1,"}) {
    EXPECT_FALSE(Faults::InjectAll(text)) << text;
  }
  EXPECT_TRUE(Faults::InjectAll("ecc:1@cudaFree,hang:99"));
}

TEST_F(FaultsTest, AKernelBugIsStickyWhereItDoesNotAbort) {
  Faults::SetAbortOnKernelError(false);
  ASSERT_EQ(LaunchWild(nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, 4), cudaErrorIllegalAddress);
}

TEST_F(FaultsTest, AKernelBugAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        LaunchWild(nullptr);
        cudaDeviceSynchronize();
      },
      "memory fault at address 0x40");
}

TEST(Environment, LogsLaunches) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const std::string path = testing::TempDir() + "kvern_launch_log." + std::to_string(getpid());
  EXPECT_EXIT(
      {
        setenv("KVERN_SIMT_LAUNCH_LOG", path.c_str(), 1);
        LaunchThreads(3, 64);
        std::ifstream log(path);
        std::stringstream text;
        text << log.rdbuf();
        std::fputs(text.str().c_str(), stderr);
        std::remove(path.c_str());
        std::exit(0);
      },
      testing::ExitedWithCode(0), "simt::.anonymous namespace.::IdleKernel 3 64\n");
}

TEST_F(MemoryTest, IsLimitedByTheCapacity) {
  Current().device_bytes = 1 << 20;
  size_t free_bytes = 0, total_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  EXPECT_EQ(total_bytes, size_t{1} << 20);
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, (1 << 20) + 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  ASSERT_EQ(cudaMalloc(&memory, 1 << 19), cudaSuccess);
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  EXPECT_LE(free_bytes, size_t{1} << 19);
  EXPECT_EQ(cudaFree(memory), cudaSuccess);
}

TEST_F(MemoryTest, KnowsWhosePointerItIs) {
  const DeviceInts device(4);
  void* pinned = nullptr;
  int pageable = 0;
  ASSERT_EQ(cudaHostAlloc(&pinned, 64, cudaHostAllocDefault), cudaSuccess);
  cudaPointerAttributes attributes = {};
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, device.get() + 3), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, static_cast<char*>(pinned) + 63), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeHost);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, &pageable), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
  EXPECT_EQ(cudaFreeHost(pinned), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFree(&pageable), cudaErrorInvalidValue);
}

TEST_F(MemoryTest, CanBePinnedWhereItLies) {
  std::vector<char> bytes(100);
  ASSERT_EQ(cudaHostRegister(bytes.data(), bytes.size(), cudaHostRegisterDefault), cudaSuccess);
  EXPECT_EQ(cudaHostRegister(bytes.data() + 50, 100, cudaHostRegisterDefault),
            cudaErrorHostMemoryAlreadyRegistered);
  EXPECT_EQ(cudaHostUnregister(bytes.data()), cudaSuccess);
  EXPECT_EQ(cudaHostUnregister(bytes.data()), cudaErrorHostMemoryNotRegistered);
}

}  // namespace
}  // namespace simt
