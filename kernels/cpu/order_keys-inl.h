// OrderKey of kernels/base/order_key.h, a vector of scores at a time.
#if defined(KVERN_KERNELS_CPU_ORDER_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_ORDER_KEYS_INL_H_
#undef KVERN_KERNELS_CPU_ORDER_KEYS_INL_H_
#else
#define KVERN_KERNELS_CPU_ORDER_KEYS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/order_key.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using KeyTag = hn::ScalableTag<uint32_t>;
using KeyVec = hn::Vec<KeyTag>;

HWY_INLINE KeyVec OrderKeys(hn::Vec<hn::Rebind<float, KeyTag>> score) {
  const KeyTag d;
  const hn::Rebind<float, KeyTag> df;
  const hn::Rebind<int32_t, KeyTag> di;
  const KeyVec sign = hn::Set(d, 0x80000000u);
  const KeyVec bits = hn::BitCast(d, score);
  const KeyVec negative = hn::BitCast(d, hn::ShiftRight<31>(hn::BitCast(di, score)));
  const KeyVec key = hn::Xor(bits, hn::Or(negative, sign));
  const auto is_zero = hn::RebindMask(d, hn::Eq(score, hn::Zero(df)));
  const auto is_nan = hn::RebindMask(d, hn::IsNaN(score));
  return hn::IfThenElse(is_nan, hn::Set(d, kNanOrderKey), hn::IfThenElse(is_zero, sign, key));
}

// Bytes of a mask, each widened to a lane.
HWY_INLINE hn::Mask<KeyTag> LoadMask(const uint8_t* mask) {
  const KeyTag d;
  return hn::Ne(hn::PromoteTo(d, hn::LoadU(hn::Rebind<uint8_t, KeyTag>(), mask)), hn::Zero(d));
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
