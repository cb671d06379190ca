// e^x in f32, one formula for every backend and instruction set, as kernels/base/math.h: for what
// is many and small beside its own rounding, such as the terms of a softmax.
#ifndef KVERN_KERNELS_BASE_EXP_FLOAT_H_
#define KVERN_KERNELS_BASE_EXP_FLOAT_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/base/host_device.h"

namespace kvern {

namespace elementary {

// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
inline constexpr float kFloatRounder = 12582912.0f;
inline constexpr float kFloatExpLow = -87.0f;  // below: 0; e^-87 is the last integer power that is
                                               // a normal number
inline constexpr float kFloatExpHigh = 88.0f;  // above: infinity
inline constexpr float kFloatLog2E = 0x1.715476p+0f;
// ln 2 in two pieces.
inline constexpr float kFloatLn2High = 0x1.62e43p-1f;
inline constexpr float kFloatLn2Low = -0x1.05c61p-29f;
// e^r = sum r^k / k! for |r| <= ln 2 / 2, highest power first.
struct FloatExpSeries {
  float terms[8] = {1.0f / 5040.0f, 1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f,
                    1.0f / 6.0f,    1.0f / 2.0f,   1.0f,          1.0f};
};

}  // namespace elementary

// e^x within 2 ulp; 0 below -87, infinity above 88, NaN for NaN.
KVERN_HD inline float ExpFloat(float x) {
  using namespace elementary;
  if (x != x) return x;
  if (x < kFloatExpLow) return 0.0f;
  if (x > kFloatExpHigh) return std::numeric_limits<float>::infinity();
  const float shifted = std::fma(x, kFloatLog2E, kFloatRounder);
  const float n = shifted - kFloatRounder;
  float r = std::fma(n, -kFloatLn2High, x);
  r = std::fma(n, -kFloatLn2Low, r);
  constexpr FloatExpSeries series;
  float mantissa = series.terms[0];
  for (int i = 1; i < 8; ++i) mantissa = std::fma(mantissa, r, series.terms[i]);
  // The low bits of `shifted` are n: adding them to the exponent multiplies by 2^n.
  uint32_t scale, bits;
  std::memcpy(&scale, &shifted, sizeof(scale));
  std::memcpy(&bits, &mantissa, sizeof(bits));
  bits += scale << 23;
  std::memcpy(&mantissa, &bits, sizeof(bits));
  return mantissa;
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_EXP_FLOAT_H_
