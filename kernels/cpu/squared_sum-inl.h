// The f64 sum of squares of an f32 row: 16 virtual lanes (kernels/base/lanes.h) in registers.
#if defined(KVERN_KERNELS_CPU_SQUARED_SUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_SQUARED_SUM_INL_H_
#undef KVERN_KERNELS_CPU_SQUARED_SUM_INL_H_
#else
#define KVERN_KERNELS_CPU_SQUARED_SUM_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/lanes.h"
#include "kernels/cpu/dots-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x [n] aligned, n a multiple of 16; zeros at its end change nothing, as no lane is ever -0.
HWY_INLINE double SquaredSum(const float* HWY_RESTRICT x, int64_t n) {
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> narrow;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(d));
  constexpr int kRegisters = kLanes / kStep;
  hn::Vec<decltype(d)> sum[kRegisters];
  for (int r = 0; r < kRegisters; ++r) sum[r] = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kLanes) {
    for (int r = 0; r < kRegisters; ++r) {
      const auto value = hn::PromoteTo(d, hn::Load(narrow, x + i + r * kStep));
      sum[r] = hn::MulAdd(value, value, sum[r]);
    }
  }
  HWY_ALIGN double lanes[kLanes];
  for (int r = 0; r < kRegisters; ++r) hn::Store(sum[r], d, lanes + r * kStep);
  return LaneTreeSum(lanes);
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
