// H on the device, each addition that of kernels/base/hadamard.cc: in the registers of two threads
// for a head_dim that is a power of two, or in shared memory by 16 threads for any.
#ifndef KVERN_KERNELS_CUDA_HADAMARD_CUH_
#define KVERN_KERNELS_CUDA_HADAMARD_CUH_

#include <cstdint>

#include "kernels/base/hadamard.h"
#include "kernels/cuda/coded_row.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/row.cuh"

namespace kvern::cuda {

// A row in the registers of a pair: the thread of parity p holds element 16 s + 8 p + e in x[s][e].
template <int kSteps>
using PairRow = float[kSteps][kOctet];

// Signs of a pair's elements: bit 8 s + e is set for -1.
struct PairSigns {
  uint64_t even = 0;
  uint64_t odd = 0;
};
template <int kHeadDim>
KVERN_HD constexpr PairSigns PairSignsOf() {
  PairSigns signs;
  uint64_t state = kHeadDim;
  for (int i = 0; i < kHeadDim; ++i) {
    const uint64_t bit = (NextSign(&state) & 1) << (i / kStep * kOctet + i % kOctet);
    (i % kStep < kOctet ? signs.even : signs.odd) |= bit;
  }
  return signs;
}

// Known at compile time but for the parity: a negated operand costs nothing, and where the threads
// of the pair differ one multiplication by +-1 serves both.
template <int kSteps>
__device__ inline void PairSign(float parity_sign, PairRow<kSteps>& x) {
  constexpr PairSigns signs = PairSignsOf<kSteps * kStep>();
  KVERN_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      const int bit = s * kOctet + e;
      if ((signs.even >> bit & 1) != 0) x[s][e] = -x[s][e];
      if (((signs.even ^ signs.odd) >> bit & 1) != 0) x[s][e] *= parity_sign;
    }
  }
}

__device__ inline void Butterfly(float& a, float& b) {
  const float low = a;
  const float high = b;
  a = low + high;
  b = low - high;
}

// Strides 1, 2, 4 inside an octet, 8 across the pair, 16 and more across steps; then the scale. All
// threads of the warp take part. `parity_sign` is 1 for the even thread, -1 for the odd one.
template <int kSteps>
__device__ inline void PairButterflies(float parity_sign, PairRow<kSteps>& x) {
  KVERN_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    KVERN_UNROLL
    for (int stride = 1; stride < kOctet; stride *= 2) {
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        if ((e & stride) == 0) Butterfly(x[s][e], x[s][e + stride]);
      }
    }
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      x[s][e] = fmaf(parity_sign, x[s][e], __shfl_xor_sync(kAllLanes, x[s][e], 1));
    }
  }
  KVERN_UNROLL
  for (int stride = 1; stride < kSteps; stride *= 2) {
    KVERN_UNROLL
    for (int s = 0; s < kSteps; ++s) {
      if ((s & stride) != 0) continue;
      KVERN_UNROLL
      for (int e = 0; e < kOctet; ++e) Butterfly(x[s][e], x[s + stride][e]);
    }
  }
  // 1 / sqrt(order) as kernels/base rounds it, for the orders that have this path.
  static_assert(kSteps == 4 || kSteps == 8);
  constexpr float kScale = kSteps == 4 ? 0.125f : 0x1.6a09e6p-4f;
  KVERN_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) x[s][e] *= kScale;
  }
}

// 16 threads share a row; thread `lane` of them owns elements lane, lane + 16, ...

// Butterflies of one block of x in shared memory. Ends with what the warp wrote visible to it.
__device__ inline void GroupButterflies(const DeviceHadamardBlock& block, int lane, float* x) {
  for (int log2_stride = 0; log2_stride < block.log2_run; ++log2_stride) {
    const int stride = 1 << log2_stride;
    for (int pair = lane; pair < block.order / 2; pair += kLanes) {
      const int low = (pair >> log2_stride << (log2_stride + 1)) + (pair & (stride - 1));
      Butterfly(x[block.first + low], x[block.first + low + stride]);
    }
    __syncwarp();
  }
}

// Element i of the block: the base matrix times the column of its run.
__device__ inline float BaseProduct(const DeviceHadamardBlock& block, int i, const float* x) {
  const float* column = x + block.first + (i & ((1 << block.log2_run) - 1));
  if (block.base_order == 1) return x[block.first + i];
  const float* row = block.base + (i >> block.log2_run) * block.base_order;
  float sum = row[0] * column[0];
  for (int k = 1; k < block.base_order; ++k) {
    sum = fmaf(row[k], column[k << block.log2_run], sum);
  }
  return sum;
}

// y = H x but for the signs; x is lost. Both lie in shared memory, the warp sees all of x when it
// comes here and each thread its own elements of y when it leaves. All threads of the warp take
// part.
__device__ inline void GroupHadamard(const DeviceHadamard& hadamard, int lane, float* x, float* y) {
  for (int b = 0; b < hadamard.blocks; ++b) {
    const DeviceHadamardBlock& block = hadamard.block[b];
    GroupButterflies(block, lane, x);
    for (int i = (lane - block.first) & (kLanes - 1); i < block.order; i += kLanes) {
      y[block.first + i] = BaseProduct(block, i, x) * block.scale;
    }
  }
}

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_HADAMARD_CUH_
