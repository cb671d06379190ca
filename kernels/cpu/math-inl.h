// kernels/base/math.h on vectors of f64 and exp_float.h on vectors of f32, bit for bit.
#if defined(KVERN_KERNELS_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_MATH_INL_H_
#undef KVERN_KERNELS_CPU_MATH_INL_H_
#else
#define KVERN_KERNELS_CPU_MATH_INL_H_
#endif

#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernels/base/elementary.h"
#include "kernels/base/exp_float.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Unrolled by recursion: a loop over the terms costs more than their fma, and compilers keep it.
template <int kDone, int N, class D, class V>
HWY_INLINE V HornerFrom(D d, const hn::TFromD<D> (&highest_first)[N], V x, V sum) {
  if constexpr (kDone == N) {
    return sum;
  } else {
    const V next = hn::MulAdd(sum, x, hn::Set(d, highest_first[kDone]));
    return HornerFrom<kDone + 1>(d, highest_first, x, next);
  }
}
template <int N, class D, class V = hn::Vec<D>>
HWY_INLINE V Horner(D d, const hn::TFromD<D> (&highest_first)[N], V x) {
  return HornerFrom<1>(d, highest_first, x, hn::Set(d, highest_first[0]));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V VectorExp(D d, V x) {
  using namespace elementary;
  const hn::RebindToUnsigned<D> du;
  const V shifted = hn::MulAdd(x, hn::Set(d, kLog2E), hn::Set(d, kRounder));
  const V n = hn::Sub(shifted, hn::Set(d, kRounder));
  V r = hn::MulAdd(n, hn::Set(d, -kLn2High), x);
  r = hn::MulAdd(n, hn::Set(d, -kLn2Low), r);
  const V mantissa = Horner(d, ExpSeries().terms, r);
  const auto scale = hn::ShiftLeft<52>(hn::BitCast(du, shifted));
  V result = hn::BitCast(d, hn::Add(hn::BitCast(du, mantissa), scale));
  result = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, kExpLow)), result);
  const V infinity = hn::Set(d, std::numeric_limits<double>::infinity());
  result = hn::IfThenElse(hn::Gt(x, hn::Set(d, kExpHigh)), infinity, result);
  return hn::IfThenElse(hn::IsNaN(x), x, result);
}

// Of what is at most 0, as the terms of a softmax are; anything for NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V VectorExpFloat(D d, V x) {
  using namespace elementary;
  const hn::RebindToUnsigned<D> du;
  const V shifted = hn::MulAdd(x, hn::Set(d, kFloatLog2E), hn::Set(d, kFloatRounder));
  const V n = hn::Sub(shifted, hn::Set(d, kFloatRounder));
  V r = hn::MulAdd(n, hn::Set(d, -kFloatLn2High), x);
  r = hn::MulAdd(n, hn::Set(d, -kFloatLn2Low), r);
  const V mantissa = Horner(d, FloatExpSeries().terms, r);
  const auto scale = hn::ShiftLeft<23>(hn::BitCast(du, shifted));
  const V result = hn::BitCast(d, hn::Add(hn::BitCast(du, mantissa), scale));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, kFloatExpLow)), result);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V VectorLog(D d, V x) {
  using namespace elementary;
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, x);
  const auto biased = hn::Sub(bits, hn::Set(du, static_cast<uint64_t>(kSqrtHalfBits)));
  const auto shifted =
      hn::ShiftRight<52>(hn::Add(biased, hn::Set(du, static_cast<uint64_t>(kExponentBias))));
  const auto exponent = hn::Sub(shifted, hn::Set(du, uint64_t{1024}));
  // Small integers become f64 in the low bits of the rounder.
  const auto placed = hn::Add(exponent, hn::Set(du, static_cast<uint64_t>(kRounderBits)));
  const V n = hn::Sub(hn::BitCast(d, placed), hn::Set(d, kRounder));
  const auto mantissa = hn::Sub(bits, hn::ShiftLeft<52>(exponent));
  const V f = hn::Sub(hn::BitCast(d, mantissa), hn::Set(d, 1.0));
  const V s = hn::Div(f, hn::Add(hn::Set(d, 2.0), f));
  const V z = hn::Mul(s, s);
  const V series = hn::Mul(z, Horner(d, LogSeries().terms, z));
  const V half_square = hn::Mul(hn::Mul(hn::Set(d, 0.5), f), f);
  const V rest = hn::MulAdd(s, hn::Add(half_square, series), hn::Mul(n, hn::Set(d, kLn2Low)));
  V result = hn::MulAdd(n, hn::Set(d, kLn2High), hn::Sub(f, hn::Sub(half_square, rest)));
  const V infinity = hn::Set(d, std::numeric_limits<double>::infinity());
  result = hn::IfThenElse(hn::Eq(x, infinity), infinity, result);
  result = hn::IfThenElse(hn::Lt(x, hn::Set(d, kSmallestNormal)), hn::Neg(infinity), result);
  const V nan = hn::Set(d, std::numeric_limits<double>::quiet_NaN());
  return hn::IfThenElse(hn::Or(hn::IsNaN(x), hn::Lt(x, hn::Zero(d))), nan, result);
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
