// Elementary functions with one formula for every backend and instruction set (ruling 6): reduce
// the argument exactly enough, sum a short Taylor series by explicit fma, put the exponent back;
// vector code repeats it bit for bit.
#ifndef KVERN_KERNELS_BASE_MATH_H_
#define KVERN_KERNELS_BASE_MATH_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/base/elementary.h"
#include "kernels/base/host_device.h"

namespace kvern {

namespace internal {
KVERN_HD inline int64_t BitsOfDouble(double value) {
  int64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
KVERN_HD inline double DoubleFromBits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
template <int N>
KVERN_HD double Horner(const double (&highest_first)[N], double x) {
  double sum = highest_first[0];
  for (int i = 1; i < N; ++i) sum = std::fma(sum, x, highest_first[i]);
  return sum;
}
}  // namespace internal

// e^x within 2 ulp; 0 below -708, infinity above 709, NaN for NaN.
KVERN_HD inline double Exp(double x) {
  using namespace elementary;
  if (x != x) return x;
  if (x < kExpLow) return 0.0;
  if (x > kExpHigh) return std::numeric_limits<double>::infinity();
  const double shifted = std::fma(x, kLog2E, kRounder);
  const double n = shifted - kRounder;
  double r = std::fma(n, -kLn2High, x);
  r = std::fma(n, -kLn2Low, r);
  constexpr ExpSeries series;
  const double mantissa = internal::Horner(series.terms, r);
  // The low bits of `shifted` are n: adding them to the exponent multiplies by 2^n.
  const uint64_t scale = static_cast<uint64_t>(internal::BitsOfDouble(shifted)) << 52;
  return internal::DoubleFromBits(static_cast<uint64_t>(internal::BitsOfDouble(mantissa)) + scale);
}

// ln x within 2 ulp for normal x > 0; -infinity for 0 and subnormals, NaN below 0 and for NaN.
KVERN_HD inline double Log(double x) {
  using namespace elementary;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (x != x || x < 0.0) return std::numeric_limits<double>::quiet_NaN();
  if (x < kSmallestNormal) return -kInfinity;
  if (x == kInfinity) return kInfinity;
  const int64_t bits = internal::BitsOfDouble(x);
  const int64_t exponent = (bits - kSqrtHalfBits) >> 52;
  const double n = static_cast<double>(exponent);
  // x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); ln(1 + f) = 2 artanh(s), s = f / (2 + f).
  const double f =
      internal::DoubleFromBits(static_cast<uint64_t>(bits - exponent * (int64_t{1} << 52))) - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  constexpr LogSeries log_series;
  const double series = z * internal::Horner(log_series.terms, z);
  // 2 s = f - s f, and s f = f^2/2 - s f^2/2: the large part f stays exact until the last sum.
  const double half_square = 0.5 * f * f;
  const double rest = std::fma(s, half_square + series, n * kLn2Low);
  return std::fma(n, kLn2High, f - (half_square - rest));
}

// sin and cos within 1e-15 absolute for |x| < 2^24.
KVERN_HD inline void SinCos(double x, double* sine, double* cosine) {
  const double shifted = std::fma(x, elementary::kTwoOverPi, elementary::kRounder);
  const double n = shifted - elementary::kRounder;
  double r = std::fma(n, -elementary::kHalfPiHigh, x);
  r = std::fma(n, -elementary::kHalfPiLow, r);
  const double z = r * r;
  constexpr elementary::SineSeries sine_series;
  constexpr elementary::CosineSeries cosine_series;
  const double s = std::fma(r * z, internal::Horner(sine_series.terms, z), r);
  const double c = internal::Horner(cosine_series.terms, z);
  const int64_t quadrant = internal::BitsOfDouble(shifted) & 3;
  const double swapped_sine = (quadrant & 1) != 0 ? c : s;
  const double swapped_cosine = (quadrant & 1) != 0 ? s : c;
  *sine = (quadrant & 2) != 0 ? -swapped_sine : swapped_sine;
  *cosine = ((quadrant + 1) & 2) != 0 ? -swapped_cosine : swapped_cosine;
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_MATH_H_
