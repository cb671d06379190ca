// The rotation of kernels/base/hadamard.h: the same additions, a vector of butterflies at a time.
#if defined(KVERN_KERNELS_CPU_HADAMARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_HADAMARD_INL_H_
#undef KVERN_KERNELS_CPU_HADAMARD_INL_H_
#else
#define KVERN_KERNELS_CPU_HADAMARD_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/hadamard.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using QuadTag = hn::CappedTag<float, 4>;

// Strides 1 and 2 of four coordinates. Adding a negated operand is subtracting, to the bit.
HWY_INLINE hn::Vec<QuadTag> QuadButterflies(hn::Vec<QuadTag> x) {
  const QuadTag d;
  HWY_ALIGN static constexpr float kOdd[4] = {0.0f, -0.0f, 0.0f, -0.0f};
  HWY_ALIGN static constexpr float kHigh[4] = {0.0f, 0.0f, -0.0f, -0.0f};
  x = hn::Add(hn::Shuffle2301(x), hn::Xor(x, hn::Load(d, kOdd)));
  return hn::Add(hn::Shuffle1032(x), hn::Xor(x, hn::Load(d, kHigh)));
}

// Lanes of D <= stride.
template <class D>
HWY_INLINE void StrideButterflies(D d, int64_t stride, int64_t n, float* HWY_RESTRICT x) {
  for (int64_t start = 0; start < n; start += 2 * stride) {
    for (int64_t i = start; i < start + stride; i += hn::Lanes(d)) {
      const auto low = hn::LoadU(d, x + i);
      const auto high = hn::LoadU(d, x + i + stride);
      hn::StoreU(hn::Add(low, high), d, x + i);
      hn::StoreU(hn::Sub(low, high), d, x + i + stride);
    }
  }
}

HWY_INLINE void Butterflies(const HadamardBlock& block, float* HWY_RESTRICT x) {
  const int64_t n = block.Order();
  if (block.run < 4) {  // a base matrix on pairs: order 24, 40 or 56
    for (int64_t i = 0; i < n; i += 2) {
      const float low = x[i];
      x[i] = low + x[i + 1];
      x[i + 1] = low - x[i + 1];
    }
    return;
  }
  const QuadTag quad;
  for (int64_t i = 0; i < n; i += 4) {
    hn::StoreU(QuadButterflies(hn::LoadU(quad, x + i)), quad, x + i);
  }
  if (block.run > 4) StrideButterflies(quad, 4, n, x);
  if (block.run > 8) StrideButterflies(hn::CappedTag<float, 8>(), 8, n, x);
  for (int64_t stride = 16; stride < block.run; stride *= 2) {
    StrideButterflies(hn::CappedTag<float, 16>(), stride, n, x);
  }
}

// Columns [column, column + lanes) of the runs become matrix times column.
template <class D>
HWY_INLINE void MultiplyColumns(D d, const HadamardBlock& block, const float* matrix,
                                float* HWY_RESTRICT x) {
  const int64_t order = block.base_order;
  HWY_ALIGN float columns[kMaxHadamardBase * 16];
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t c = 0; c < block.run; c += lanes) {
    for (int64_t r = 0; r < order; ++r) {
      hn::Store(hn::LoadU(d, x + r * block.run + c), d, columns + r * lanes);
    }
    for (int64_t r = 0; r < order; ++r) {
      auto sum = hn::Mul(hn::Set(d, matrix[r * order]), hn::Load(d, columns));
      for (int64_t k = 1; k < order; ++k) {
        const auto sign = hn::Set(d, matrix[r * order + k]);
        sum = hn::MulAdd(sign, hn::Load(d, columns + k * lanes), sum);
      }
      hn::StoreU(sum, d, x + r * block.run + c);
    }
  }
}

HWY_INLINE void MultiplyBase(const HadamardBlock& block, const float* matrix,
                             float* HWY_RESTRICT x) {
  if (matrix == nullptr) return;
  if (block.run >= 16) {
    MultiplyColumns(hn::CappedTag<float, 16>(), block, matrix, x);
  } else if (block.run >= 8) {
    MultiplyColumns(hn::CappedTag<float, 8>(), block, matrix, x);
  } else if (block.run >= 4) {
    MultiplyColumns(hn::CappedTag<float, 4>(), block, matrix, x);
  } else {
    MultiplyColumns(hn::CappedTag<float, 1>(), block, matrix, x);
  }
}

HWY_INLINE void ScaleCoordinates(float scale, int64_t n, float* HWY_RESTRICT x) {
  const QuadTag d;  // an order is a multiple of 8, no more
  for (int64_t i = 0; i < n; i += 4) {
    hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale)), d, x + i);
  }
}

HWY_INLINE void ApplySigns(const Hadamard& hadamard, float* HWY_RESTRICT x) {
  const hn::CappedTag<float, 8> d;
  for (int64_t i = 0; i < hadamard.head_dim; i += hn::Lanes(d)) {
    hn::StoreU(hn::Mul(hn::LoadU(d, x + i), hn::LoadU(d, hadamard.signs.data() + i)), d, x + i);
  }
}

// x [head_dim] in place.
inline void HadamardRow(const Hadamard& hadamard, float* HWY_RESTRICT x) {
  ApplySigns(hadamard, x);
  for (const HadamardBlock& block : hadamard.blocks) {
    Butterflies(block, x + block.first);
    MultiplyBase(block, block.base, x + block.first);
    ScaleCoordinates(block.scale, block.Order(), x + block.first);
  }
}
inline void InverseHadamardRow(const Hadamard& hadamard, float* HWY_RESTRICT x) {
  for (const HadamardBlock& block : hadamard.blocks) {
    Butterflies(block, x + block.first);
    MultiplyBase(block, block.transposed, x + block.first);
    ScaleCoordinates(block.scale, block.Order(), x + block.first);
  }
  ApplySigns(hadamard, x);
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_HADAMARD_INL_H_
