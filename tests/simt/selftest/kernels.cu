// Good idioms: they must give the same under every schedule, and no build may complain of them.
#include <simt/simt.h>

#include "simt/selftest/kernels.h"

namespace simt::selftest {
namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;

__global__ void SumsKernel(Sums p) {
  KVERN_SHARED(int64_t, partial, 32);
  int64_t sum = p.in[int64_t{blockIdx.x} * blockDim.x + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAll, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t total = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) total += partial[w];
    p.out[blockIdx.x] = total;
  }
}

__global__ void RotationKernel(Exchange p) {
  KVERN_SHARED(uint32_t, values, 1024);
  const unsigned t = threadIdx.x;
  // Two rounds with two halves of the buffer: one barrier each is enough.
  for (unsigned round = 0; round < 4; ++round) {
    uint32_t* buffer = values + round % 2 * 512;
    buffer[t] = t * 10 + round;
    __syncthreads();
    p.out[t] = buffer[(t + 1) % blockDim.x];
  }
}

__global__ void HalfWarpsKernel(Exchange p) {
  const unsigned t = threadIdx.x;
  const unsigned mask = t % 32 < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  p.out[t] = __shfl_sync(mask, t, 5, 16) + __reduce_max_sync(mask, t);
}

__global__ void VotesKernel(Exchange p) {
  const unsigned t = threadIdx.x;
  const unsigned odd = static_cast<unsigned>(__syncthreads_count(t % 2));
  const unsigned ballot = __ballot_sync(kAll, t % 3 == 0);
  const unsigned same = __match_any_sync(kAll, t % 4);
  const bool any = __any_sync(kAll, t == 7) != 0;
  const bool all = __all_sync(kAll, t < 1024) != 0;
  p.out[t] = odd * 1000 + static_cast<unsigned>(__popc(ballot)) * 100 +
             static_cast<unsigned>(__popc(same)) * 10 + (any ? 2 : 0) + (all ? 1 : 0) +
             (__syncthreads_or(t == 3) != 0 ? 4 : 0) + (__syncthreads_and(t != 3) != 0 ? 8 : 0);
}

__global__ void ShufflesKernel(Exchange p) {
  const unsigned t = threadIdx.x;
  p.out[4 * t] = __shfl_sync(kAll, t, 31);
  p.out[4 * t + 1] = __shfl_up_sync(kAll, t, 1);
  p.out[4 * t + 2] = __shfl_down_sync(kAll, t, 3, 8);
  p.out[4 * t + 3] = __shfl_xor_sync(kAll, t, 8);
}

__global__ void DynamicKernel(Exchange p) {
  KVERN_DYNAMIC_SHARED(uint32_t, values);
  const unsigned t = threadIdx.x;
  values[blockDim.x - 1 - t] = t;
  __syncthreads();
  p.out[t] = values[t];
}

__global__ void WarpExchangeKernel(Exchange p) {
  KVERN_SHARED(uint32_t, values, 1024);
  const unsigned t = threadIdx.x;
  uint32_t sum = 0;
  for (unsigned round = 0; round < 3; ++round) {
    values[t] = t + round;
    __syncwarp();
    sum += values[t ^ 1];
    __syncwarp();
  }
  p.out[t] = sum;
}

__global__ void HistogramKernel(Histogram p) {
  KVERN_SHARED(uint32_t, counts, 256);
  for (unsigned bin = threadIdx.x; bin < 256; bin += blockDim.x) counts[bin] = 0;
  __syncthreads();
  const int32_t stride = static_cast<int32_t>(gridDim.x * blockDim.x);
  for (auto i = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x); i < p.n; i += stride) {
    atomicAdd(&counts[p.in[i]], 1u);
  }
  __syncthreads();
  for (unsigned bin = threadIdx.x; bin < 256; bin += blockDim.x) {
    atomicAdd(&p.out[bin], counts[bin]);
  }
}

__global__ void StrideKernel(Stride p) {
  KVERN_SHARED(uint32_t, values, 1024);
  const auto t = static_cast<int32_t>(threadIdx.x);
  values[t * p.stride] = p.in[t * p.stride];
  __syncwarp();
  p.out[t] = values[t * p.stride];
}

// Recursion that the compiler cannot turn into a loop.
uint32_t Descend(int32_t calls, uint32_t* out) {
  volatile uint32_t local[64];
  local[calls % 64] = static_cast<uint32_t>(calls);
  if (calls > 0) local[0] = Descend(calls - 1, out) + local[calls % 64];
  return local[0] + *out;
}

__global__ void DepthKernel(Depth p) {
  if (threadIdx.x == 3) p.out[0] = Descend(p.calls, p.out);
}

__global__ void TooMuchSharedKernel(Exchange p) {
  KVERN_SHARED(uint32_t, values, 16384);
  values[threadIdx.x] = 1;
  p.out[threadIdx.x] = values[threadIdx.x];
}

}  // namespace

void RunSums(int blocks, int threads, const Sums& sums) {
  RunKernel(SumsKernel, blocks, threads, 0, sums);
}
void RunRotation(int threads, const Exchange& exchange) {
  RunKernel(RotationKernel, 1, threads, 0, exchange);
}
void RunHalfWarps(int threads, const Exchange& exchange) {
  RunKernel(HalfWarpsKernel, 1, threads, 0, exchange);
}
void RunVotes(int threads, const Exchange& exchange) {
  RunKernel(VotesKernel, 1, threads, 0, exchange);
}
void RunShuffles(int threads, const Exchange& exchange) {
  RunKernel(ShufflesKernel, 1, threads, 0, exchange);
}
void RunDynamic(int threads, const Exchange& exchange) {
  RunKernel(DynamicKernel, 1, threads, threads * static_cast<int>(sizeof(uint32_t)), exchange);
}
void RunWarpExchange(int threads, const Exchange& exchange) {
  RunKernel(WarpExchangeKernel, 1, threads, 0, exchange);
}
void RunHistogram(int blocks, int threads, const Histogram& histogram) {
  RunKernel(HistogramKernel, blocks, threads, 0, histogram);
}

void RunStride(const Stride& stride) { RunKernel(StrideKernel, 1, 32, 0, stride); }
void RunDepth(const Depth& depth) { RunKernel(DepthKernel, 1, 32, 0, depth); }
void RunTooMuchShared(const Exchange& exchange) {
  RunKernel(TooMuchSharedKernel, 1, 32, 0, exchange);
}

}  // namespace simt::selftest
