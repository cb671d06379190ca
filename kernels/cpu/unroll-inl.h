// A loop whose counter is a constant, so that arrays of vectors stay in registers.
#if defined(KVERN_KERNELS_CPU_UNROLL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_UNROLL_INL_H_
#undef KVERN_KERNELS_CPU_UNROLL_INL_H_
#else
#define KVERN_KERNELS_CPU_UNROLL_INL_H_
#endif

#include <type_traits>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {

// Attributes of a lambda that must become part of its caller: a call would move registers through
// memory.
#ifndef KVERN_INLINE_STEP
#define KVERN_INLINE_STEP HWY_ATTR __attribute__((always_inline))
#endif

// step(std::integral_constant<int, i>()) for i in [0, kCount); a step is KVERN_INLINE_STEP.
template <int kCount, int kFrom = 0, class Step>
HWY_INLINE void Unroll(const Step& step) {
  if constexpr (kFrom < kCount) {
    step(std::integral_constant<int, kFrom>());
    Unroll<kCount, kFrom + 1>(step);
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
