// The rules of affine int4, i4t and kch4: x is about code * scale + zero, codes 0..15.
#ifndef KVERN_KERNELS_BASE_AFFINE_RULES_H_
#define KVERN_KERNELS_BASE_AFFINE_RULES_H_

#include <cmath>

#include "kernels/base/coding.h"

namespace kvern {

inline constexpr float kI4Levels = 15.0f;

struct AffineScale {
  CodeScale scale;
  CodeScale zero;
};
// Of a group of numbers between `lowest` and `highest`. Adding 0 makes -0 into 0, so that it does
// not matter which of the two a search for the lowest has found.
KVERN_HD inline AffineScale AffineScaleOf(float lowest, float highest) {
  const float zero = lowest < -kLargestCoded ? -kLargestCoded : lowest;
  return {RoundScale((highest - lowest) / kI4Levels + 0.0f), RoundScale(zero + 0.0f)};
}

// `inverse` is InverseScale of the scale; ties go to the even code.
KVERN_HD inline float AffineCode(float x, float zero, float inverse) {
  const float code = std::nearbyint((x - zero) * inverse);
  return code < 0.0f ? 0.0f : code > kI4Levels ? kI4Levels : code;
}
KVERN_HD inline float AffineValue(float code, float scale, float zero) {
  return std::fma(scale, code, zero);
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_AFFINE_RULES_H_
