// e4m3 (OCP 8-bit floating point, the variant without infinities), as fp8t stores it.
#ifndef KVERN_KERNELS_BASE_FP8_H_
#define KVERN_KERNELS_BASE_FP8_H_

#include <cmath>
#include <cstdint>

#include "kernels/base/coding.h"
#include "kernels/base/dtype.h"

namespace kvern {

inline constexpr float kE4m3Largest = 448.0f;
inline constexpr float kE4m3SmallestNormal = 0x1p-6f;
inline constexpr float kE4m3SubnormalsPerUnit = 0x1p9f;

KVERN_HD inline CodeScale Fp8Scale(float largest) { return RoundScale(largest / kE4m3Largest); }

// The nearest code, ties to even; what is larger than 448 becomes 448. Zero has no sign, so that
// rows of zeros have one code whatever a rotation made of them. `value` is no NaN.
KVERN_HD inline uint8_t E4m3FromFloat(float value) {
  const uint32_t sign = internal::BitsFromFloat(value) >> 24 & 0x80u;
  const float magnitude = std::fabs(value) < kE4m3Largest ? std::fabs(value) : kE4m3Largest;
  if (magnitude < kE4m3SmallestNormal) {
    // Eight of these units are the smallest normal, whose code is 8 too.
    const auto units = static_cast<uint32_t>(std::nearbyint(magnitude * kE4m3SubnormalsPerUnit));
    return static_cast<uint8_t>(units == 0 ? 0 : sign | units);
  }
  const uint32_t bits = internal::BitsFromFloat(magnitude);
  const uint32_t rounded = bits + 0x7FFFFu + (bits >> 20 & 1u);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

// No encoder writes 0x80, nor 0x7F and 0xFF, which count on: +-480.
KVERN_HD inline float FloatFromE4m3(uint32_t code) {
  const uint32_t sign = (code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7Fu;
  if (magnitude < 8) {
    const float value = static_cast<float>(magnitude) / kE4m3SubnormalsPerUnit;
    return internal::FloatFromBits(internal::BitsFromFloat(value) | sign);
  }
  return internal::FloatFromBits(((magnitude + (120u << 3)) << 20) | sign);
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_FP8_H_
