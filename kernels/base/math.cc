// Reduce the argument exactly enough, sum a short Taylor series by fma, put the exponent back.
#include "kernels/base/math.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/base/elementary.h"

namespace kvern {
namespace {

int64_t BitsOf(double value) {
  int64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
double FromBits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <int N>
double Horner(const double (&highest_first)[N], double x) {
  double sum = highest_first[0];
  for (int i = 1; i < N; ++i) sum = std::fma(sum, x, highest_first[i]);
  return sum;
}

// pi / 2 in two pieces: the first product of the reduction is exact under fma, the second is small.
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
constexpr double kHalfPiHigh = 0x1.921fb54442d18p+0;
constexpr double kHalfPiLow = 0x1.1a62633145c07p-54;
// sin r = r + r z * series(z), cos r = series(z), z = r^2, |r| <= pi / 4.
constexpr double kSineSeries[] = {
    -1.0 / 1307674368000.0, 1.0 / 6227020800.0, -1.0 / 39916800.0, 1.0 / 362880.0,
    -1.0 / 5040.0,          1.0 / 120.0,        -1.0 / 6.0};
constexpr double kCosineSeries[] = {1.0 / 20922789888000.0,
                                    -1.0 / 87178291200.0,
                                    1.0 / 479001600.0,
                                    -1.0 / 3628800.0,
                                    1.0 / 40320.0,
                                    -1.0 / 720.0,
                                    1.0 / 24.0,
                                    -1.0 / 2.0,
                                    1.0};

}  // namespace

double Exp(double x) {
  using namespace elementary;
  if (std::isnan(x)) return x;
  if (x < kExpLow) return 0.0;
  if (x > kExpHigh) return std::numeric_limits<double>::infinity();
  const double shifted = std::fma(x, kLog2E, kRounder);
  const double n = shifted - kRounder;
  double r = std::fma(n, -kLn2High, x);
  r = std::fma(n, -kLn2Low, r);
  const double mantissa = Horner(kExpSeries, r);
  // The low bits of `shifted` are n: adding them to the exponent multiplies by 2^n.
  const uint64_t scale = static_cast<uint64_t>(BitsOf(shifted)) << 52;
  return FromBits(static_cast<uint64_t>(BitsOf(mantissa)) + scale);
}

double Log(double x) {
  using namespace elementary;
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (std::isnan(x) || x < 0.0) return std::numeric_limits<double>::quiet_NaN();
  if (x < kSmallestNormal) return -kInfinity;
  if (x == kInfinity) return kInfinity;
  const int64_t bits = BitsOf(x);
  const int64_t exponent = (bits - kSqrtHalfBits) >> 52;
  const double n = static_cast<double>(exponent);
  // x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); ln(1 + f) = 2 artanh(s), s = f / (2 + f).
  const double f = FromBits(static_cast<uint64_t>(bits - exponent * (int64_t{1} << 52))) - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double series = z * Horner(kLogSeries, z);
  // 2 s = f - s f, and s f = f^2/2 - s f^2/2: the large part f stays exact until the last sum.
  const double half_square = 0.5 * f * f;
  const double rest = std::fma(s, half_square + series, n * kLn2Low);
  return std::fma(n, kLn2High, f - (half_square - rest));
}

void SinCos(double x, double* sine, double* cosine) {
  const double shifted = std::fma(x, kTwoOverPi, elementary::kRounder);
  const double n = shifted - elementary::kRounder;
  double r = std::fma(n, -kHalfPiHigh, x);
  r = std::fma(n, -kHalfPiLow, r);
  const double z = r * r;
  const double s = std::fma(r * z, Horner(kSineSeries, z), r);
  const double c = Horner(kCosineSeries, z);
  const int64_t quadrant = BitsOf(shifted) & 3;
  const double swapped_sine = (quadrant & 1) != 0 ? c : s;
  const double swapped_cosine = (quadrant & 1) != 0 ? s : c;
  *sine = (quadrant & 2) != 0 ? -swapped_sine : swapped_sine;
  *cosine = ((quadrant + 1) & 2) != 0 ? -swapped_cosine : swapped_cosine;
}

}  // namespace kvern
