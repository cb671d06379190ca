// A register of f32 from a row in memory, as LoadAsFloat gives it, on the units that sums leave
// idle.
#if defined(KVERN_KERNELS_CPU_WIDEN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_WIDEN_INL_H_
#undef KVERN_KERNELS_CPU_WIDEN_INL_H_
#else
#define KVERN_KERNELS_CPU_WIDEN_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/lanes.h"
#include "kernels/cpu/kv_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class T>
HWY_INLINE hn::Vec<D> Widen(D d, const T* from) {
  return LoadAsFloat(d, from);
}
// A shift of bits takes the place of an fma in wide registers, a shift of bytes is a shuffle.
template <class D>
HWY_INLINE hn::Vec<D> Widen(D d, const BFloat16* from) {
  if constexpr (hn::MaxLanes(D()) == kLanes) {
    const hn::Rebind<uint16_t, D> narrow;
    const hn::Rebind<uint32_t, D> wide;
    const auto bits = hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(from));
    return hn::BitCast(d, hn::ShiftLeftBytes<2>(wide, hn::PromoteTo(wide, bits)));
  } else {
    return LoadAsFloat(d, from);
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
