// Memory that is not there, not aligned, not the device's, or not yet written.
#include <simt/simt.h>

#include "simt/planted/planted.h"
#include "simt/planted/twins.h"

namespace simt::planted {
namespace {

struct alignas(16) Four {
  uint32_t words[4];
};

template <Twin twin>
__global__ void SharedOverrun(Buffers p) {
  KVERN_SHARED(uint32_t, values, 64);
  const unsigned t = threadIdx.x;
  values[t] = p.in[t];
  __syncthreads();
  if (t == 0 && twin == Twin::kBad) values[p.in[0] + 63] = 5;  // in[0] = 1
  __syncthreads();
  p.out[t] = values[63 - t];
}

template <Twin twin>
__global__ void DynamicOverrun(Buffers p) {
  KVERN_DYNAMIC_SHARED(uint8_t, bytes);
  const unsigned t = threadIdx.x;
  bytes[t + (twin == Twin::kBad ? p.in[0] : 0)] = static_cast<uint8_t>(t);
  p.out[t] = t;
}

template <Twin twin>
__global__ void GlobalOverrun(Buffers p) {
  p.out[kWords - 1 + (twin == Twin::kBad ? p.in[0] : 0)] = 1;
}

template <Twin twin>
__global__ void GlobalUnderrun(Buffers p) {
  const auto t = static_cast<int>(threadIdx.x);
  p.out[t] = p.in[twin == Twin::kBad ? t - 1 : t];
}

// One value that nobody wrote; a value that is wrong anyway hides it from the result.
template <Twin twin>
__global__ void UninitialisedShared(Buffers p) {
  KVERN_SHARED(uint32_t, values, 64);
  const unsigned t = threadIdx.x;
  if (twin == Twin::kGood || t != 5) values[t] = p.in[t] % 100;
  __syncthreads();
  p.out[t] = values[63 - t] < 100 ? 1 : 1;
  if (values[63 - t] == 1000) p.out[t] = 2;
}

template <Twin twin>
__global__ void UninitialisedGlobal(Buffers p) {
  const unsigned t = threadIdx.x;
  if (twin == Twin::kGood) p.raw[t] = t;
  p.out[t] = p.raw[t] == 1000 ? 2 : 1;
}

template <Twin twin>
__global__ void MisalignedVector(Buffers p) {
  const unsigned t = threadIdx.x;
  const Four four = Load<Four>(p.in + 4 * t + (twin == Twin::kBad ? 1 : 0));
  p.out[t] = four.words[0] + four.words[3];
}

template <Twin twin>
__global__ void HostPointer(Buffers p) {
  const unsigned t = threadIdx.x;
  const uint32_t* from = twin == Twin::kBad ? p.host : p.in;
  p.out[t] = from[t] > 0 ? 1 : 2;
}

template <Twin twin>
__global__ void NullPointer(Buffers p) {
  const unsigned t = threadIdx.x;
  const uint32_t* from = twin == Twin::kBad && p.in[0] == 1 ? nullptr : p.in;
  p.out[t] = from[t];
}

}  // namespace

void RunSharedOverrun(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {SharedOverrun<Twin::kBad>, SharedOverrun<Twin::kGood>}, {1, 64}, buffers);
}
void RunDynamicOverrun(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {DynamicOverrun<Twin::kBad>, DynamicOverrun<Twin::kGood>}, {1, 64, 64}, buffers);
}
void RunGlobalOverrun(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {GlobalOverrun<Twin::kBad>, GlobalOverrun<Twin::kGood>}, {1, 1}, buffers);
}
void RunGlobalUnderrun(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {GlobalUnderrun<Twin::kBad>, GlobalUnderrun<Twin::kGood>}, {1, 64}, buffers);
}
void RunUninitialisedShared(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {UninitialisedShared<Twin::kBad>, UninitialisedShared<Twin::kGood>}, {1, 64},
          buffers);
}
void RunUninitialisedGlobal(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {UninitialisedGlobal<Twin::kBad>, UninitialisedGlobal<Twin::kGood>}, {1, 64},
          buffers);
}
void RunMisalignedVector(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {MisalignedVector<Twin::kBad>, MisalignedVector<Twin::kGood>}, {1, 64}, buffers);
}
void RunHostPointer(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {HostPointer<Twin::kBad>, HostPointer<Twin::kGood>}, {1, 64}, buffers);
}
void RunNullPointer(Twin twin, const Buffers& buffers) {
  RunTwin(twin, {NullPointer<Twin::kBad>, NullPointer<Twin::kGood>}, {1, 64}, buffers);
}

}  // namespace simt::planted
