// Element types of a KV cache and their exact conversions to f32.
//
// C++17 and free of third-party headers: device code includes this file.
#ifndef KVERN_KERNELS_BASE_DTYPE_H_
#define KVERN_KERNELS_BASE_DTYPE_H_

#include <cstdint>
#include <cstring>

#include "kernels/base/host_device.h"

namespace kvern {

enum class DType : uint8_t { kBF16 = 0, kF16 = 1, kF32 = 2 };

KVERN_HD constexpr int64_t SizeOf(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

constexpr const char* Name(DType dtype) {
  return dtype == DType::kBF16 ? "bf16" : dtype == DType::kF16 ? "f16" : "f32";
}

// Storage types: they carry bits, arithmetic happens in f32.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
static_assert(sizeof(BFloat16) == 2 && sizeof(Float16) == 2);

namespace internal {
KVERN_HD inline float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
KVERN_HD inline uint32_t BitsFromFloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
}  // namespace internal

// Exact: every bf16/f16 value is an f32 value, subnormals and NaN payloads included.
KVERN_HD inline float ToFloat(float value) { return value; }
KVERN_HD inline float ToFloat(BFloat16 value) {
  return internal::FloatFromBits(uint32_t{value.bits} << 16);
}
KVERN_HD inline float ToFloat(Float16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t exponent = (value.bits >> 10) & 0x1Fu;
  const uint32_t mantissa = value.bits & 0x3FFu;
  if (exponent == 0x1F) return internal::FloatFromBits(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0) {
    return internal::FloatFromBits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  }
  const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
  return internal::FloatFromBits(sign | internal::BitsFromFloat(magnitude));
}

// Round to nearest, ties to even. NaN stays NaN (quiet, payload cut). f16 overflows to infinity.
template <class T>
KVERN_HD T FromFloat(float value);

template <>
KVERN_HD inline float FromFloat<float>(float value) {
  return value;
}

template <>
KVERN_HD inline BFloat16 FromFloat<BFloat16>(float value) {
  const uint32_t bits = internal::BitsFromFloat(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
KVERN_HD inline Float16 FromFloat<Float16>(float value) {
  const uint32_t bits = internal::BitsFromFloat(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};
  if (magnitude >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 puts the f16 ulp (2^-24) at the f32 ulp, so the adder rounds for us.
    const float shifted = internal::FloatFromBits(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (internal::BitsFromFloat(shifted) - 0x3F000000u))};
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

// Maps a run-time dtype to its storage type once, at a backend's edge: fn(TypeTag<BFloat16>{}).
template <class T>
struct TypeTag {
  using type = T;
};
template <class Fn>
auto VisitDType(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kBF16:
      return fn(TypeTag<BFloat16>{});
    case DType::kF16:
      return fn(TypeTag<Float16>{});
    case DType::kF32:
      break;
  }
  return fn(TypeTag<float>{});
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_DTYPE_H_
