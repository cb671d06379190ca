// Words that several threads or blocks update without a rule.
#include <simt/simt.h>

#include "simt/planted/planted.h"
#include "simt/planted/twins.h"

namespace simt::planted {
namespace {

template <Twin twin>
__global__ void LostUpdateShared(Buffers p) {
  KVERN_SHARED(unsigned, counts, 16);
  const unsigned t = threadIdx.x;
  if (t < 16) counts[t] = 0;
  __syncthreads();
  const uint32_t bin = p.in[t] % 16;
  if constexpr (twin == Twin::kGood) {
    atomicAdd(&counts[bin], 1u);
  } else {
    counts[bin] += 1;
  }
  __syncthreads();
  if (t < 16) p.out[t] = counts[t];
}

template <Twin twin>
__global__ void LostUpdateGlobal(Buffers p) {
  if constexpr (twin == Twin::kGood) {
    atomicAdd(&p.out[0], 1u);
  } else {
    p.out[0] = p.out[0] + 1;
  }
}

template <Twin twin>
__global__ void OtherBlock(Buffers p) {
  const unsigned b = blockIdx.x;
  p.out[b] = b + 1;
  const unsigned source = twin == Twin::kGood ? b : (b + 1) % gridDim.x;
  p.out[100 + b] = p.out[source];
}

template <Twin twin>
__global__ void OneWord(Buffers p) {
  p.out[twin == Twin::kGood ? blockIdx.x : 0] = blockIdx.x + 1;
}

// Atomic for the writers only.
template <Twin twin>
__global__ void AtomicAndPlain(Buffers p) {
  KVERN_SHARED(unsigned, total, 1);
  const unsigned t = threadIdx.x;
  if (t == 0) total[0] = 0;
  __syncthreads();
  atomicAdd(&total[0], p.in[t]);
  if constexpr (twin == Twin::kGood) __syncthreads();
  p.out[t] = total[0];
}

}  // namespace

void RunLostUpdateShared(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {LostUpdateShared<Twin::kBad>, LostUpdateShared<Twin::kGood>}, {1, 64}, buffers);
}
void RunLostUpdateGlobal(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {LostUpdateGlobal<Twin::kBad>, LostUpdateGlobal<Twin::kGood>}, {4, 32}, buffers);
}
void RunOtherBlock(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {OtherBlock<Twin::kBad>, OtherBlock<Twin::kGood>}, {50, 1}, buffers);
}
void RunOneWord(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {OneWord<Twin::kBad>, OneWord<Twin::kGood>}, {8, 1}, buffers);
}
void RunAtomicAndPlain(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {AtomicAndPlain<Twin::kBad>, AtomicAndPlain<Twin::kGood>}, {1, 64}, buffers);
}

}  // namespace simt::planted
