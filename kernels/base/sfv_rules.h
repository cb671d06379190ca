// The rules of the sign-folded vector codes: 4 coordinates are their signs and the nearest vector
// of magnitudes (quantization.md 3.3).
#ifndef KVERN_KERNELS_BASE_SFV_RULES_H_
#define KVERN_KERNELS_BASE_SFV_RULES_H_

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/coding.h"
#include "kernels/base/sfv_table.h"

namespace kvern {

// A vector of magnitudes as numbers, with half of its squared length. All are exact.
struct SfvVector {
  float magnitude[kSfvCoords];
  float half_square;
};
KVERN_HD constexpr SfvVector SfvVectorOf(uint32_t word) {
  SfvVector vector{};
  float square = 0.0f;
  for (int j = 0; j < kSfvCoords; ++j) {
    vector.magnitude[j] = static_cast<float>(word >> (8 * j) & 0xFFu) * kSfvStep;
    square += vector.magnitude[j] * vector.magnitude[j];
  }
  vector.half_square = 0.5f * square;
  return vector;
}

template <size_t kSize>
constexpr std::array<SfvVector, kSize> SfvVectorsOf(const uint32_t (&words)[kSize]) {
  std::array<SfvVector, kSize> vectors{};
  for (size_t n = 0; n < kSize; ++n) vectors[n] = SfvVectorOf(words[n]);
  return vectors;
}
inline constexpr std::array<SfvVector, 256> kSfv3Vectors = SfvVectorsOf(kSfv3Words);
inline constexpr std::array<SfvVector, 16> kSfv2Vectors = SfvVectorsOf(kSfv2Words);

inline std::span<const SfvVector> SfvVectors(CodecId codec) {
  if (codec == CodecId::kSfv2) return kSfv2Vectors;
  return kSfv3Vectors;
}

// Smaller for the nearer of two vectors; the first of those with the smallest is taken.
KVERN_HD inline float SfvDistance(const SfvVector& vector, const float (&x)[kSfvCoords]) {
  float distance = vector.half_square;
  for (int j = 0; j < kSfvCoords; ++j) {
    distance = std::fma(-std::fabs(x[j]), vector.magnitude[j], distance);
  }
  return distance;
}

// Makes <x, decoded> = |x|^2: `product` is <levels, normalized row>, `squared_length` |x|^2.
KVERN_HD inline CodeScale SfvUnbiasedScale(float squared_length, int64_t head_dim, float product) {
  if (!(product > 0.0f)) return RoundScale(0.0f);
  const float root = std::sqrt(static_cast<float>(head_dim));
  return RoundScale(std::sqrt(squared_length) * root / product);
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_SFV_RULES_H_
