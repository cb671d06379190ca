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

enum class SignOf : uint8_t { kPlus, kMinus, kParity, kMinusParity };
// Of element 8 s + e = `bit`: known but for the parity of the thread.
KVERN_HD constexpr SignOf SignAt(const PairSigns& signs, int bit) {
  const bool minus = (signs.even >> bit & 1) != 0;
  const bool differs = ((signs.even ^ signs.odd) >> bit & 1) != 0;
  if (differs) return minus ? SignOf::kMinusParity : SignOf::kParity;
  return minus ? SignOf::kMinus : SignOf::kPlus;
}
KVERN_HD constexpr bool IsMinus(SignOf sign) {
  return sign == SignOf::kMinus || sign == SignOf::kMinusParity;
}
KVERN_HD constexpr bool HasParity(SignOf sign) {
  return sign == SignOf::kParity || sign == SignOf::kMinusParity;
}

__device__ inline void Butterfly(float& a, float& b) {
  const float low = a;
  const float high = b;
  a = low + high;
  b = low - high;
}

// Butterfly of sign_a * a and sign_b * b. Products by +-1 are exact, so that they may be fused with
// the addition; a known minus is a modifier of an operand and costs nothing.
__device__ inline void SignedButterfly(SignOf sign_a, SignOf sign_b, float parity_sign, float& a,
                                       float& b) {
  const float low = IsMinus(sign_a) ? -a : a;
  float high = IsMinus(sign_b) ? -b : b;
  if (HasParity(sign_a)) {
    if (HasParity(sign_b)) high *= parity_sign;
    a = fmaf(parity_sign, low, high);
    b = fmaf(parity_sign, low, -high);
  } else if (HasParity(sign_b)) {
    a = fmaf(parity_sign, high, low);
    b = fmaf(-parity_sign, high, low);
  } else {
    a = low + high;
    b = low - high;
  }
}

// Strides 2, 4 inside an octet, 8 across the pair, 16 and more across steps. All threads of the
// warp take part. `parity_sign` is 1 for the even thread, -1 for the odd one.
template <int kSteps>
__device__ inline void PairWideButterflies(float parity_sign, PairRow<kSteps>& x) {
  KVERN_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    KVERN_UNROLL
    for (int stride = 2; stride < kOctet; stride *= 2) {
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
}

// 1 / sqrt(order) as kernels/base rounds it, for the orders that have this path.
template <int kSteps>
KVERN_HD constexpr float PairScale() {
  static_assert(kSteps == 4 || kSteps == 8);
  return kSteps == 4 ? 0.125f : 0x1.6a09e6p-4f;
}

// x = H (signs * x). All threads of the warp take part.
template <int kSteps>
__device__ inline void PairRotate(float parity_sign, PairRow<kSteps>& x) {
  constexpr PairSigns signs = PairSignsOf<kSteps * kStep>();
  KVERN_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    KVERN_UNROLL
    for (int e = 0; e < kOctet; e += 2) {
      const int bit = s * kOctet + e;
      SignedButterfly(SignAt(signs, bit), SignAt(signs, bit + 1), parity_sign, x[s][e],
                      x[s][e + 1]);
    }
  }
  PairWideButterflies<kSteps>(parity_sign, x);
  KVERN_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) x[s][e] *= PairScale<kSteps>();
  }
}

// x = signs * (H x), the way back. All threads of the warp take part.
template <int kSteps>
__device__ inline void PairUnrotate(float parity_sign, PairRow<kSteps>& x) {
  constexpr PairSigns signs = PairSignsOf<kSteps * kStep>();
  const float parity_scale = parity_sign * PairScale<kSteps>();
  KVERN_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    KVERN_UNROLL
    for (int e = 0; e < kOctet; e += 2) Butterfly(x[s][e], x[s][e + 1]);
  }
  PairWideButterflies<kSteps>(parity_sign, x);
  KVERN_UNROLL
  for (int s = 0; s < kSteps; ++s) {
    KVERN_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      const SignOf sign = SignAt(signs, s * kOctet + e);
      const float scale = HasParity(sign) ? parity_scale : PairScale<kSteps>();
      x[s][e] *= IsMinus(sign) ? -scale : scale;
    }
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
