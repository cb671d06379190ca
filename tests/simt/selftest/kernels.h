// Kernels that use the emulator as kernels should.
#ifndef KVERN_TESTS_SIMT_SELFTEST_KERNELS_H_
#define KVERN_TESTS_SIMT_SELFTEST_KERNELS_H_

#include <cstdint>

#include "simt/launch.h"

namespace simt::selftest {

// One launch per call; a grid that fails throws. All pointers are device memory.
struct Sums {
  const int32_t* in;  // [blocks * threads]
  int64_t* out;       // [blocks]
};
void RunSums(int blocks, int threads, const Sums& sums);  // shuffles, shared memory, a barrier

struct Exchange {
  uint32_t* out;  // [threads]
};
// Each of these writes what lane t of one block of `threads` gets.
void RunRotation(int threads, const Exchange& exchange);   // neighbour by way of shared memory
void RunHalfWarps(int threads, const Exchange& exchange);  // disjoint masks of 16 lanes
void RunVotes(int threads, const Exchange& exchange);      // count over the block, ballots, match
void RunShuffles(int threads, const Exchange& exchange);   // 4 results: [4 * threads]
void RunDynamic(int threads, const Exchange& exchange);    // dynamic shared memory, reversed
void RunWarpExchange(int threads, const Exchange& exchange);  // shared memory and __syncwarp

struct Histogram {
  const uint8_t* in;  // [n]
  uint32_t* out;      // [256], zeros at first
  int32_t n;
};
void RunHistogram(int blocks, int threads, const Histogram& histogram);  // shared, then global

// Access patterns of one warp, for the counters of the check build: lane t reads in[stride * t] and
// passes it through shared memory with that stride.
struct Stride {
  const uint32_t* in;
  uint32_t* out;  // [32]
  int32_t stride;
};
void RunStride(const Stride& stride);

// Not a bug of memory or order, but a kernel that ends badly.
struct Depth {
  uint32_t* out;
  int32_t calls;  // each takes about 256 bytes of local memory
};
void RunDepth(const Depth& depth);
void RunTooMuchShared(const Exchange& exchange);  // 64 KiB of static shared memory

}  // namespace simt::selftest

#endif  // KVERN_TESTS_SIMT_SELFTEST_KERNELS_H_
