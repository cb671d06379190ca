// When queued work runs, and what the host sees meanwhile.
#include <thread>

#include "simt/runtime_test/runtime_fixture.h"

namespace simt {
namespace {

using Streams = RuntimeTest;

// Page-locked ints.
class PinnedInts {
 public:
  explicit PinnedInts(size_t count) {
    void* data = nullptr;
    EXPECT_EQ(cudaHostAlloc(&data, count * sizeof(int), cudaHostAllocDefault), cudaSuccess);
    data_ = static_cast<int*>(data);
  }
  ~PinnedInts() { cudaFreeHost(data_); }
  int& operator[](size_t i) { return data_[i]; }
  int* get() { return data_; }

 private:
  int* data_ = nullptr;
};

void Upload(int* to, const int* from, int count, cudaStream_t stream) {
  ASSERT_EQ(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(int),
                            cudaMemcpyHostToDevice, stream),
            cudaSuccess);
}

TEST_F(Streams, RunKernelsAndCopiesInOrderInEveryMode) {
  for (const StreamMode mode : {StreamMode::kLazy, StreamMode::kEager, StreamMode::kRandom}) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      Start(mode, seed);
      const Stream stream;
      const DeviceInts device(100);
      const std::vector<int> start(100, 7);
      Upload(device.get(), start.data(), 100, stream.get());
      ASSERT_EQ(LaunchAdd(device.get(), 100, 2, stream.get()), cudaSuccess);
      ASSERT_EQ(LaunchAdd(device.get(), 50, 1, stream.get()), cudaSuccess);
      const std::vector<int> values = Read(device.get(), 100, stream.get());
      EXPECT_EQ(values[0], 10);
      EXPECT_EQ(values[99], 9);
    }
  }
}

TEST_F(Streams, LeaveOldBytesOnTheHostUntilItWaits) {
  const Stream stream;
  const DeviceInts device(1);
  PinnedInts host(1);
  ASSERT_EQ(cudaMemsetAsync(device.get(), 0, sizeof(int), stream.get()), cudaSuccess);
  host[0] = 5;
  ASSERT_EQ(
      cudaMemcpyAsync(host.get(), device.get(), sizeof(int), cudaMemcpyDeviceToHost, stream.get()),
      cudaSuccess);
  EXPECT_EQ(host[0], 5);
  ASSERT_EQ(cudaStreamSynchronize(stream.get()), cudaSuccess);
  EXPECT_EQ(host[0], 0);
}

TEST_F(Streams, ReadPinnedMemoryWhenTheCopyRunsAndPageableWhenCalled) {
  const Stream stream;
  const DeviceInts device(2);
  PinnedInts pinned(1);
  int pageable = 1;
  pinned[0] = 1;
  Upload(device.get(), pinned.get(), 1, stream.get());
  Upload(device.get() + 1, &pageable, 1, stream.get());
  pinned[0] = pageable = 2;
  EXPECT_EQ(Read(device.get(), 2, stream.get()), (std::vector<int>{2, 1}));
}

TEST_F(Streams, AnswerNotReadyWhileWorkIsQueuedAndMoveOnWhenAsked) {
  const Stream stream;
  const DeviceInts device(1);
  ASSERT_EQ(cudaMemsetAsync(device.get(), 0, sizeof(int), stream.get()), cudaSuccess);
  ASSERT_EQ(LaunchAdd(device.get(), 1, 1, stream.get()), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(stream.get()), cudaErrorNotReady);
  EXPECT_EQ(cudaGetLastError(), cudaErrorNotReady) << "as the real runtime, which remembers it";
  EXPECT_EQ(cudaStreamQuery(stream.get()), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamQuery(stream.get()), cudaSuccess);
}

TEST_F(Streams, WaitForEventsOfOtherStreams) {
  const Stream producer, consumer;
  const DeviceInts device(1);
  cudaEvent_t written = nullptr;
  ASSERT_EQ(cudaEventCreateWithFlags(&written, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(device.get(), 0, sizeof(int), producer.get()), cudaSuccess);
  ASSERT_EQ(LaunchAdd(device.get(), 1, 3, producer.get()), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(written, producer.get()), cudaSuccess);
  ASSERT_EQ(LaunchAdd(device.get(), 1, 100, producer.get()), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(consumer.get(), written), cudaSuccess);
  EXPECT_EQ(Read(device.get(), 1, consumer.get()), std::vector<int>{3});
  EXPECT_EQ(cudaEventQuery(written), cudaSuccess);
  EXPECT_EQ(Read(device.get(), 1, producer.get()), std::vector<int>{103});
  EXPECT_EQ(cudaEventDestroy(written), cudaSuccess);
}

TEST_F(Streams, WithoutAnEventAreNotOrdered) {
  const Stream first, second;
  const DeviceInts device(1);
  ASSERT_EQ(cudaMemsetAsync(device.get(), 0, sizeof(int), first.get()), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(first.get()), cudaSuccess);
  ASSERT_EQ(LaunchAdd(device.get(), 1, 3, first.get()), cudaSuccess);
  EXPECT_EQ(Read(device.get(), 1, second.get()), std::vector<int>{0});
}

TEST_F(Streams, OfTheBlockingKindKeepOrderWithTheNullStream) {
  cudaStream_t blocking = nullptr;
  ASSERT_EQ(cudaStreamCreate(&blocking), cudaSuccess);
  const DeviceInts device(1);
  ASSERT_EQ(cudaMemsetAsync(device.get(), 0, sizeof(int), blocking), cudaSuccess);
  ASSERT_EQ(LaunchAdd(device.get(), 1, 4, nullptr), cudaSuccess);
  EXPECT_EQ(Read(device.get(), 1, blocking), std::vector<int>{4});
  EXPECT_EQ(cudaStreamDestroy(blocking), cudaSuccess);
}

TEST_F(Streams, MeasureWorkBetweenTimedEvents) {
  const Stream stream;
  const DeviceInts device(1 << 16);
  cudaEvent_t start = nullptr, end = nullptr;
  float milliseconds = -1;
  ASSERT_EQ(cudaEventCreate(&start), cudaSuccess);
  ASSERT_EQ(cudaEventCreate(&end), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaErrorInvalidResourceHandle);
  ASSERT_EQ(cudaEventRecord(start, stream.get()), cudaSuccess);
  ASSERT_EQ(cudaMemsetAsync(device.get(), 0, size_t{4} << 16, stream.get()), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(end, stream.get()), cudaSuccess);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaErrorNotReady);
  ASSERT_EQ(cudaEventSynchronize(end), cudaSuccess);
  ASSERT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaSuccess);
  EXPECT_GT(milliseconds, 0);
  cudaEventDestroy(start);
  cudaEventDestroy(end);
}

TEST_F(Streams, FinishQueuedWorkAfterTheyAreDestroyed) {
  const DeviceInts device(1);
  {
    const Stream stream;
    ASSERT_EQ(cudaMemsetAsync(device.get(), 0, sizeof(int), stream.get()), cudaSuccess);
    ASSERT_EQ(LaunchAdd(device.get(), 1, 6, stream.get()), cudaSuccess);
  }
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(Read(device.get(), 1, nullptr), std::vector<int>{6});
}

TEST_F(Streams, ServeThreadsSideBySide) {
  for (const StreamMode mode : {StreamMode::kLazy, StreamMode::kEager, StreamMode::kRandom}) {
    Start(mode);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([] {
        const Stream stream;
        const DeviceInts device(10);
        EXPECT_EQ(cudaMemsetAsync(device.get(), 0, 40, stream.get()), cudaSuccess);
        for (int i = 0; i < 50; ++i) {
          EXPECT_EQ(LaunchAdd(device.get(), 10, 1, stream.get()), cudaSuccess);
        }
        EXPECT_EQ(Read(device.get(), 10, stream.get()), std::vector<int>(10, 50));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST_F(Streams, LetKernelsReachMappedHostMemory) {
  void* host = nullptr;
  void* device = nullptr;
  ASSERT_EQ(cudaHostAlloc(&host, sizeof(int), cudaHostAllocMapped), cudaSuccess);
  ASSERT_EQ(cudaHostGetDevicePointer(&device, host, 0), cudaSuccess);
  *static_cast<int*>(host) = 3;
  ASSERT_EQ(LaunchAdd(static_cast<int*>(device), 1, 4, nullptr), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(*static_cast<int*>(host), 7);
  EXPECT_EQ(cudaFreeHost(host), cudaSuccess);
}

TEST_F(Streams, RefuseHandlesThatAreNone) {
  cudaStream_t stream = nullptr;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaEventQuery(nullptr), cudaErrorInvalidResourceHandle);
}

TEST_F(Streams, CopyRowsByTheirPitch) {
  const Stream stream;
  const DeviceInts device(6);
  const std::vector<int> host = {1, 2, 99, 3, 4, 99};
  ASSERT_EQ(cudaMemsetAsync(device.get(), 0, 6 * sizeof(int), stream.get()), cudaSuccess);
  ASSERT_EQ(cudaMemcpy2DAsync(device.get(), 2 * sizeof(int), host.data(), 3 * sizeof(int),
                              2 * sizeof(int), 2, cudaMemcpyHostToDevice, stream.get()),
            cudaSuccess);
  EXPECT_EQ(Read(device.get(), 6, stream.get()), (std::vector<int>{1, 2, 3, 4, 0, 0}));
  EXPECT_EQ(cudaMemcpy2DAsync(device.get(), 4, host.data(), 12, 8, 2, cudaMemcpyHostToDevice,
                              stream.get()),
            cudaErrorInvalidPitchValue);
}

TEST_F(Streams, RefuseCopiesPastAnAllocationOrInTheWrongDirection) {
  const DeviceInts device(4);
  std::vector<int> host(8);
  EXPECT_EQ(cudaMemcpy(device.get() + 2, host.data(), 12, cudaMemcpyHostToDevice),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(device.get(), host.data(), 4, cudaMemcpyDeviceToHost),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpy(device.get(), host.data(), 16, cudaMemcpyDefault), cudaSuccess);
}

}  // namespace
}  // namespace simt
