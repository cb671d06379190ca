// Missing barriers: threads of one block read what others have not written, or still read.
#include <simt/simt.h>

#include "simt/planted/planted.h"
#include "simt/planted/twins.h"

namespace simt::planted {
namespace {

constexpr unsigned kAll = 0xFFFFFFFFu;

template <Twin twin>
__global__ void Neighbour(Buffers p) {
  KVERN_SHARED(uint32_t, values, 256);
  const unsigned t = threadIdx.x;
  values[t] = p.in[t];
  if constexpr (twin == Twin::kGood) __syncthreads();
  p.out[t] = values[(t + 1) % 256];
}

template <Twin twin>
__global__ void HistogramClear(Buffers p) {
  KVERN_SHARED(unsigned, counts, 16);
  const unsigned t = threadIdx.x;
  if (t < 16) counts[t] = 0;
  if constexpr (twin == Twin::kGood) __syncthreads();
  atomicAdd(&counts[p.in[t] % 16], 1u);
  __syncthreads();
  if (t < 16) p.out[t] = counts[t];
}

template <Twin twin>
__global__ void DigitChoice(Buffers p) {
  KVERN_SHARED(uint32_t, choice, 1);
  const unsigned t = threadIdx.x;
  if (t == 0) choice[0] = p.in[7];
  if constexpr (twin == Twin::kGood) __syncthreads();
  p.out[t] = p.in[t] + choice[0];
}

// A greedy loop: each round the largest value left, by a maximum per warp.
template <Twin twin>
__global__ void LoopEnd(Buffers p) {
  KVERN_SHARED(uint32_t, best, 8);
  const unsigned t = threadIdx.x;
  uint32_t mine = p.in[t * 37 % 256];
  for (int round = 0; round < 6; ++round) {
    const uint32_t largest = __reduce_max_sync(kAll, mine);
    if (t % 32 == 0) best[t / 32] = largest;
    __syncthreads();
    uint32_t winner = 0;
    for (int w = 0; w < 8; ++w) winner = max(winner, best[w]);
    if (mine == winner) {
      p.out[round] = winner;
      mine = 0;
    }
    if constexpr (twin == Twin::kGood) __syncthreads();
  }
}

// Two uses of one buffer, the second too early.
template <Twin twin>
__global__ void BufferReuse(Buffers p) {
  KVERN_SHARED(uint32_t, buffer, 256);
  const unsigned t = threadIdx.x;
  buffer[t] = p.in[t];
  __syncthreads();
  const uint32_t first = buffer[255 - t];
  if constexpr (twin == Twin::kGood) __syncthreads();
  buffer[t] = first * 3;
  __syncthreads();
  p.out[t] = buffer[(t + 17) % 256];
}

// As if the lanes of a warp went in step.
template <Twin twin>
__global__ void LockStep(Buffers p) {
  KVERN_SHARED(uint32_t, values, 32);
  const unsigned t = threadIdx.x;
  values[t] = p.in[t];
  if constexpr (twin == Twin::kGood) __syncwarp();
  const uint32_t next = values[(t + 1) % 32];
  if constexpr (twin == Twin::kGood) __syncwarp();
  values[t] = next + 1;
  if constexpr (twin == Twin::kGood) __syncwarp();
  p.out[t] = values[(t + 5) % 32];
}

// A shuffle orders no memory.
template <Twin twin>
__global__ void ShuffleAsFence(Buffers p) {
  KVERN_SHARED(uint32_t, values, 32);
  const unsigned t = threadIdx.x;
  values[t] = p.in[t];
  const uint32_t first = __shfl_sync(kAll, t, 0);
  if constexpr (twin == Twin::kGood) __syncwarp();
  p.out[t] = values[31 - t] + first;
}

}  // namespace

void RunNeighbour(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {Neighbour<Twin::kBad>, Neighbour<Twin::kGood>}, {1, 256}, buffers);
}
void RunHistogramClear(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {HistogramClear<Twin::kBad>, HistogramClear<Twin::kGood>}, {1, 256}, buffers);
}
void RunDigitChoice(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {DigitChoice<Twin::kBad>, DigitChoice<Twin::kGood>}, {1, 256}, buffers);
}
void RunLoopEnd(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {LoopEnd<Twin::kBad>, LoopEnd<Twin::kGood>}, {1, 256}, buffers);
}
void RunBufferReuse(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {BufferReuse<Twin::kBad>, BufferReuse<Twin::kGood>}, {1, 256}, buffers);
}
void RunLockStep(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {LockStep<Twin::kBad>, LockStep<Twin::kGood>}, {1, 32}, buffers);
}
void RunShuffleAsFence(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {ShuffleAsFence<Twin::kBad>, ShuffleAsFence<Twin::kGood>}, {1, 32}, buffers);
}

}  // namespace simt::planted
