// e4m3 by integer arithmetic on f32 bits (kernels/base/fp8.h).
#if defined(KVERN_KERNELS_CPU_FP8_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_FP8_INL_H_
#undef KVERN_KERNELS_CPU_FP8_INL_H_
#else
#define KVERN_KERNELS_CPU_FP8_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/fp8.h"
#include "kernels/cpu/kv_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Fp8Bits = hn::RebindToUnsigned<TailTag>;
using Fp8Bytes = hn::Rebind<uint8_t, TailTag>;

HWY_INLINE hn::Vec<Fp8Bits> E4m3FromFloats(hn::Vec<TailTag> value) {
  const TailTag d;
  const Fp8Bits bits;
  const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(bits, value)), hn::Set(bits, 0x80u));
  const auto magnitude = hn::Min(hn::Abs(value), hn::Set(d, kE4m3Largest));
  const hn::RebindToSigned<TailTag> integers;
  const auto units =
      hn::ConvertTo(integers, hn::Round(hn::Mul(magnitude, hn::Set(d, kE4m3SubnormalsPerUnit))));
  const auto whole = hn::BitCast(bits, magnitude);
  const auto odd = hn::And(hn::ShiftRight<20>(whole), hn::Set(bits, 1u));
  const auto rounded = hn::Add(hn::Add(whole, hn::Set(bits, 0x7FFFFu)), odd);
  const auto normal = hn::Sub(hn::ShiftRight<20>(rounded), hn::Set(bits, 120u << 3));
  const auto small = hn::RebindMask(bits, hn::Lt(magnitude, hn::Set(d, kE4m3SmallestNormal)));
  const auto code = hn::IfThenElse(small, hn::BitCast(bits, units), normal);
  return hn::IfThenZeroElse(hn::Eq(code, hn::Zero(bits)), hn::Or(code, sign));
}

HWY_INLINE hn::Vec<TailTag> FloatsFromE4m3(hn::Vec<Fp8Bits> code) {
  const TailTag d;
  const Fp8Bits bits;
  const hn::RebindToSigned<TailTag> integers;
  const auto sign = hn::ShiftLeft<24>(hn::And(code, hn::Set(bits, 0x80u)));
  const auto magnitude = hn::And(code, hn::Set(bits, 0x7Fu));
  const auto small = hn::Mul(hn::ConvertTo(d, hn::BitCast(integers, magnitude)),
                             hn::Set(d, 1.0f / kE4m3SubnormalsPerUnit));
  const auto normal = hn::ShiftLeft<20>(hn::Add(magnitude, hn::Set(bits, 120u << 3)));
  const auto value =
      hn::IfThenElse(hn::Lt(magnitude, hn::Set(bits, 8u)), hn::BitCast(bits, small), normal);
  return hn::BitCast(d, hn::Or(value, sign));
}

// Codes x, whose largest magnitude is given; x becomes what the codes leave over.
inline CodeScale CodeFp8(float largest, int64_t head_dim, float* HWY_RESTRICT x, std::byte* codes) {
  const TailTag d;
  const Fp8Bytes narrow;
  const hn::RebindToSigned<TailTag> integers;
  const CodeScale scale = Fp8Scale(largest);
  const auto inverse = hn::Set(d, InverseScale(scale.value));
  const auto step = hn::Set(d, scale.value);
  for (int64_t i = 0; i < head_dim; i += hn::Lanes(d)) {
    const auto value = hn::Load(d, x + i);
    const auto code = E4m3FromFloats(hn::Mul(value, inverse));
    hn::StoreU(hn::DemoteTo(narrow, hn::BitCast(integers, code)), narrow,
               reinterpret_cast<uint8_t*>(codes) + i);
    hn::Store(hn::NegMulAdd(step, FloatsFromE4m3(code), value), d, x + i);
  }
  return scale;
}

inline void RestoreFp8(float scale, int64_t head_dim, const std::byte* codes,
                       float* HWY_RESTRICT x) {
  const TailTag d;
  const Fp8Bytes narrow;
  for (int64_t i = 0; i < head_dim; i += hn::Lanes(d)) {
    const auto code =
        hn::PromoteTo(Fp8Bits(), hn::LoadU(narrow, reinterpret_cast<const uint8_t*>(codes) + i));
    hn::Store(hn::Mul(hn::Set(d, scale), FloatsFromE4m3(code)), d, x + i);
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
