// What encode does to numbers that no codec takes.
#if defined(KVERN_KERNELS_CPU_SANITISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_SANITISE_INL_H_
#undef KVERN_KERNELS_CPU_SANITISE_INL_H_
#else
#define KVERN_KERNELS_CPU_SANITISE_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/coding.h"
#include "kernels/cpu/kv_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// NaN becomes 0, what is too large is clamped; the count of both. x [n] aligned, n = 16 k.
inline int64_t Sanitise(float* HWY_RESTRICT x, int64_t n) {
  const RowTag d;
  const auto limit = hn::Set(d, kLargestCoded);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto value = hn::Load(d, x + i);
    const auto fine = hn::Le(hn::Abs(value), limit);
    if (HWY_LIKELY(hn::AllTrue(d, fine))) continue;
    count += static_cast<int64_t>(hn::Lanes(d) - hn::CountTrue(d, fine));
    const auto clamped = hn::IfThenZeroElse(hn::IsNaN(value), hn::CopySign(limit, value));
    hn::Store(hn::IfThenElse(fine, value, clamped), d, x + i);
  }
  return count;
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_SANITISE_INL_H_
