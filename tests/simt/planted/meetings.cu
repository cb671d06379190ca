// Barriers and shuffles that not everybody comes to.
#include <simt/simt.h>

#include "simt/planted/planted.h"
#include "simt/planted/twins.h"

namespace simt::planted {
namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;

template <Twin twin>
__global__ void DivergentShuffle(Buffers p) {
  const unsigned t = threadIdx.x;
  uint32_t value = p.in[t];
  if (twin == Twin::kGood || t % 2 == 0) value += __shfl_xor_sync(kAll, value, 2);
  p.out[t] = value;
}

// The lower half of a warp adds up, and its last lane reads the upper half.
template <Twin twin>
__global__ void InactiveLane(Buffers p) {
  const unsigned t = threadIdx.x;
  if (t >= 16) return;
  uint32_t value = p.in[t];
  value += __shfl_down_sync(0x0000FFFFu, value, 1, twin == Twin::kGood ? 16 : 32);
  p.out[t] = value;
}

template <Twin twin>
__global__ void OutsideMask(Buffers p) {
  const unsigned t = threadIdx.x;
  p.out[t] = __ballot_sync(twin == Twin::kGood ? kAll : kAll >> 1, p.in[t] % 3 == 0);
}

template <Twin twin>
__global__ void DifferentMasks(Buffers p) {
  const unsigned t = threadIdx.x;
  const unsigned mask = twin == Twin::kGood || t < 16 ? 0x0000FFFFu : kAll;
  if (twin == Twin::kBad || t < 16) p.out[t] = __reduce_add_sync(mask, p.in[t]);
}

template <Twin twin>
__global__ void DivergentBarrier(Buffers p) {
  const unsigned t = threadIdx.x;
  if (twin == Twin::kGood || t < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  p.out[t] = p.in[t];
}

template <Twin twin>
__global__ void EarlyReturn(Buffers p) {
  const unsigned t = threadIdx.x;
  const bool live = t < 50;
  if (twin == Twin::kBad && !live) return;
  if (live) p.out[t] = p.in[t];
  __syncthreads();
  if (live) p.out[t + 100] = p.out[t] + 1;
}

// One warp waits for its block, the other for one of its own lanes, which waits for the block.
template <Twin twin>
__global__ void MissedBarrier(Buffers p) {
  const unsigned t = threadIdx.x;
  if (twin == Twin::kGood || t != 40) __syncwarp();
  __syncthreads();
  p.out[t] = p.in[t];
}

}  // namespace

void RunDivergentShuffle(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {DivergentShuffle<Twin::kBad>, DivergentShuffle<Twin::kGood>}, {1, 64}, buffers);
}
void RunInactiveLane(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {InactiveLane<Twin::kBad>, InactiveLane<Twin::kGood>}, {1, 32}, buffers);
}
void RunOutsideMask(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {OutsideMask<Twin::kBad>, OutsideMask<Twin::kGood>}, {1, 32}, buffers);
}
void RunDifferentMasks(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {DifferentMasks<Twin::kBad>, DifferentMasks<Twin::kGood>}, {1, 32}, buffers);
}
void RunDivergentBarrier(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {DivergentBarrier<Twin::kBad>, DivergentBarrier<Twin::kGood>}, {1, 64}, buffers);
}
void RunEarlyReturn(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {EarlyReturn<Twin::kBad>, EarlyReturn<Twin::kGood>}, {1, 64}, buffers);
}
void RunMissedBarrier(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {MissedBarrier<Twin::kBad>, MissedBarrier<Twin::kGood>}, {1, 64}, buffers);
}

}  // namespace simt::planted
