// A runtime as new for every test, and a kernel to launch.
#ifndef KVERN_TESTS_SIMT_RUNTIME_TEST_RUNTIME_FIXTURE_H_
#define KVERN_TESTS_SIMT_RUNTIME_TEST_RUNTIME_FIXTURE_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "simt/config.h"
#include "simt/runtime/faults.h"

namespace simt {

class RuntimeTest : public testing::Test {
 protected:
  void SetUp() override { Start(StreamMode::kLazy); }
  void TearDown() override {
    Faults::Clear();
    Faults::SetAbortOnKernelError(true);
    Current() = before_;
  }
  void Start(StreamMode mode, uint64_t seed = 1) {
    Current().streams = mode;
    Current().seed = seed;
    Faults::Clear();
  }

 private:
  const Config before_ = Current();
};

// Device memory of ints, freed with it.
class DeviceInts {
 public:
  explicit DeviceInts(size_t count) {
    EXPECT_EQ(cudaMalloc(&data_, count * sizeof(int)), cudaSuccess);
  }
  ~DeviceInts() { cudaFree(data_); }
  int* get() const { return static_cast<int*>(data_); }

 private:
  void* data_ = nullptr;
};

class Stream {
 public:
  Stream() { EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess); }
  ~Stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// values[i] += amount for i < count, one thread each.
cudaError_t LaunchAdd(int* values, int count, int amount, cudaStream_t stream);
// Writes far outside of any memory.
cudaError_t LaunchWild(cudaStream_t stream);
// Dynamic shared memory, allowed or not.
cudaError_t LaunchWithShared(int shared_bytes, cudaStream_t stream);
cudaError_t AllowSharedBytesOfKernel(int shared_bytes);
cudaError_t LaunchThreads(int64_t blocks, int threads);

// What `count` device ints hold after all of `stream` is done.
std::vector<int> Read(const int* device, int count, cudaStream_t stream);

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_RUNTIME_TEST_RUNTIME_FIXTURE_H_
