// The numbers behind kernels/base/math.h: vector code reads the same ones.
#ifndef KVERN_KERNELS_BASE_ELEMENTARY_H_
#define KVERN_KERNELS_BASE_ELEMENTARY_H_

#include <cstdint>

namespace kvern::elementary {

// Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits of the sum.
inline constexpr double kRounder = 6755399441055744.0;
inline constexpr int64_t kRounderBits = 0x4338000000000000;

inline constexpr double kExpLow = -708.0;  // below: 0
inline constexpr double kExpHigh = 709.0;  // above: infinity
inline constexpr double kLog2E = 0x1.71547652b82fep+0;
// ln 2 in two pieces; n * kLn2High is exact for |n| < 2^20.
inline constexpr double kLn2High = 0x1.62e42feep-1;
inline constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
// Series live in structs, so that device code can hold a constant copy of its own.
// e^r = sum r^k / k! for |r| <= ln 2 / 2, highest power first.
struct ExpSeries {
  double terms[14] = {1.0 / 6227020800.0,
                      1.0 / 479001600.0,
                      1.0 / 39916800.0,
                      1.0 / 3628800.0,
                      1.0 / 362880.0,
                      1.0 / 40320.0,
                      1.0 / 5040.0,
                      1.0 / 720.0,
                      1.0 / 120.0,
                      1.0 / 24.0,
                      1.0 / 6.0,
                      1.0 / 2.0,
                      1.0,
                      1.0};
};

inline constexpr double kSmallestNormal = 0x1p-1022;
inline constexpr int64_t kSqrtHalfBits = 0x3FE6A09E667F3BCD;
// Keeps the shifted exponent above 0 where only a logical shift is cheap.
inline constexpr int64_t kExponentBias = int64_t{1024} << 52;
// 2 artanh(s) = 2 s + s * sum 2 z^k / (2k + 1), z = s^2 <= 0.0295, highest power first.
struct LogSeries {
  double terms[10] = {2.0 / 21.0, 2.0 / 19.0, 2.0 / 17.0, 2.0 / 15.0, 2.0 / 13.0,
                      2.0 / 11.0, 2.0 / 9.0,  2.0 / 7.0,  2.0 / 5.0,  2.0 / 3.0};
};

// pi / 2 in two pieces: the first product of the reduction is exact under fma, the second is small.
inline constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
inline constexpr double kHalfPiHigh = 0x1.921fb54442d18p+0;
inline constexpr double kHalfPiLow = 0x1.1a62633145c07p-54;
// sin r = r + r z * series(z), cos r = series(z), z = r^2, |r| <= pi / 4.
struct SineSeries {
  double terms[7] = {-1.0 / 1307674368000.0, 1.0 / 6227020800.0, -1.0 / 39916800.0, 1.0 / 362880.0,
                     -1.0 / 5040.0,          1.0 / 120.0,        -1.0 / 6.0};
};
struct CosineSeries {
  double terms[9] = {1.0 / 20922789888000.0,
                     -1.0 / 87178291200.0,
                     1.0 / 479001600.0,
                     -1.0 / 3628800.0,
                     1.0 / 40320.0,
                     -1.0 / 720.0,
                     1.0 / 24.0,
                     -1.0 / 2.0,
                     1.0};
};

}  // namespace kvern::elementary

#endif  // KVERN_KERNELS_BASE_ELEMENTARY_H_
