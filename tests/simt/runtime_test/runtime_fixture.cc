// Kernels of the runtime's tests.
#include "simt/runtime_test/runtime_fixture.h"

#include <simt/simt.h>

namespace simt {
namespace {

struct AddParams {
  int* values;
  int count;
  int amount;
};

__global__ void AddKernel(AddParams params) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < params.count) params.values[i] += params.amount;
}

struct NoParams {
  int unused = 0;
};

__global__ void WildKernel(NoParams) { *reinterpret_cast<volatile int*>(64) = 1; }
__global__ void IdleKernel(NoParams) {}

constexpr int kThreads = 64;

}  // namespace

cudaError_t LaunchAdd(int* values, int count, int amount, cudaStream_t stream) {
  return Launch(AddKernel, (count + kThreads - 1) / kThreads, kThreads, 0,
                AddParams{values, count, amount}, stream);
}

cudaError_t LaunchWild(cudaStream_t stream) {
  return Launch(WildKernel, 1, 1, 0, NoParams{}, stream);
}

cudaError_t LaunchWithShared(int shared_bytes, cudaStream_t stream) {
  return Launch(IdleKernel, 1, 32, shared_bytes, NoParams{}, stream);
}

cudaError_t AllowSharedBytesOfKernel(int shared_bytes) {
  return AllowShared(IdleKernel, shared_bytes);
}

cudaError_t LaunchThreads(int64_t blocks, int threads) {
  return Launch(IdleKernel, blocks, threads, 0, NoParams{}, nullptr);
}

std::vector<int> Read(const int* device, int count, cudaStream_t stream) {
  std::vector<int> host(static_cast<size_t>(count));
  EXPECT_EQ(cudaMemcpyAsync(host.data(), device, host.size() * sizeof(int), cudaMemcpyDeviceToHost,
                            stream),
            cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  return host;
}

}  // namespace simt
