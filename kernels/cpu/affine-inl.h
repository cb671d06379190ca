// Affine int4, i4t and kch4: scales and zeros spread to one per coordinate, then one shape for
// both.
#if defined(KVERN_KERNELS_CPU_AFFINE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_AFFINE_INL_H_
#undef KVERN_KERNELS_CPU_AFFINE_INL_H_
#else
#define KVERN_KERNELS_CPU_AFFINE_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/base/affine_rules.h"
#include "kernels/cpu/kv_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A scale and a zero per coordinate, rounded as they are stored; [head_dim] aligned.
struct AffineRow {
  float* scales;
  float* zeros;
};

// Codes x; x becomes what the codes leave over.
inline void CodeAffine(const AffineRow& affine, int64_t head_dim, float* HWY_RESTRICT x,
                       std::byte* codes) {
  const TailTag d;
  const hn::RebindToSigned<TailTag> integers;
  for (int64_t group = 0; group < head_dim; group += 8) {
    HWY_ALIGN int32_t joined[8];
    for (int64_t i = 0; i < 8; i += hn::Lanes(d)) {
      const auto value = hn::Load(d, x + group + i);
      const auto scale = hn::Load(d, affine.scales + group + i);
      const auto zero = hn::Load(d, affine.zeros + group + i);
      const auto positive = hn::Gt(scale, hn::Zero(d));
      const auto inverse = hn::IfThenElseZero(positive, hn::Div(hn::Set(d, 1.0f), scale));
      const auto rounded = hn::Round(hn::Mul(hn::Sub(value, zero), inverse));
      const auto code = hn::Clamp(rounded, hn::Zero(d), hn::Set(d, kI4Levels));
      hn::Store(hn::Sub(value, hn::MulAdd(scale, code, zero)), d, x + group + i);
      auto bits = hn::Shl(hn::ConvertTo(integers, code), hn::LoadU(integers, kLm4Shifts + i));
      bits = hn::Or(bits, hn::Shuffle2301(bits));  // no two lanes share a bit
      bits = hn::Or(bits, hn::Shuffle1032(bits));
      hn::Store(bits, integers, joined + i);
    }
    const int32_t word = joined[0] | joined[4];
    std::memcpy(codes + group / 2, &word, sizeof(word));
  }
}

inline void RestoreAffine(const AffineRow& affine, int64_t head_dim, const std::byte* codes,
                          float* HWY_RESTRICT x) {
  const TailTag d;
  const hn::RebindToUnsigned<TailTag> words;
  const hn::RebindToSigned<TailTag> integers;
  for (int64_t group = 0; group < head_dim; group += 8) {
    uint32_t word;
    std::memcpy(&word, codes + group / 2, sizeof(word));
    for (int64_t i = 0; i < 8; i += hn::Lanes(d)) {
      const auto shifts = hn::LoadU(words, reinterpret_cast<const uint32_t*>(kLm4Shifts) + i);
      const auto bits = hn::And(hn::Shr(hn::Set(words, word), shifts), hn::Set(words, 15u));
      const auto code = hn::ConvertTo(d, hn::BitCast(integers, bits));
      const auto scale = hn::Load(d, affine.scales + group + i);
      hn::Store(hn::MulAdd(scale, code, hn::Load(d, affine.zeros + group + i)), d, x + group + i);
    }
  }
}

// The scales of i4t from x, stored and spread.
inline void ScaleGroups(const float* HWY_RESTRICT x, int64_t head_dim, const AffineRow& affine,
                        const TokenBytes<std::byte>& to) {
  const TailTag d;
  const int64_t size = I4tGroup(head_dim);
  for (int64_t group = 0; group < head_dim / size; ++group) {
    const int64_t first = group * size;
    auto lowest = hn::Load(d, x + first), highest = lowest;
    for (int64_t i = first; i < first + size; i += hn::Lanes(d)) {
      lowest = hn::Min(lowest, hn::Load(d, x + i));
      highest = hn::Max(highest, hn::Load(d, x + i));
    }
    const AffineScale scale = AffineScaleOf(hn::GetLane(hn::MinOfLanes(d, lowest)),
                                            hn::GetLane(hn::MaxOfLanes(d, highest)));
    std::memcpy(to.scales + group * sizeof(Float16), &scale.scale.stored, sizeof(Float16));
    std::memcpy(to.zeros + group * sizeof(Float16), &scale.zero.stored, sizeof(Float16));
    std::fill_n(affine.scales + first, size, scale.scale.value);
    std::fill_n(affine.zeros + first, size, scale.zero.value);
  }
}

// Stored scales and zeros, each for `size` neighbouring coordinates.
inline void SpreadScales(const TokenBytes<const std::byte>& from, int64_t head_dim, int64_t size,
                         const AffineRow& affine) {
  for (int64_t group = 0; group < head_dim / size; ++group) {
    Float16 scale, zero;
    std::memcpy(&scale, from.scales + group * sizeof(scale), sizeof(scale));
    std::memcpy(&zero, from.zeros + group * sizeof(zero), sizeof(zero));
    std::fill_n(affine.scales + group * size, size, ToFloat(scale));
    std::fill_n(affine.zeros + group * size, size, ToFloat(zero));
  }
}

// The scales of a block of kch4 from the lowest and highest of each channel, stored, and left in
// their place.
inline void ScaleChannels(int64_t head_dim, float* lowest, float* highest,
                          const TokenBytes<std::byte>& to) {
  for (int64_t d = 0; d < head_dim; ++d) {
    const AffineScale scale = AffineScaleOf(lowest[d], highest[d]);
    std::memcpy(to.scales + d * sizeof(Float16), &scale.scale.stored, sizeof(Float16));
    std::memcpy(to.zeros + d * sizeof(Float16), &scale.zero.stored, sizeof(Float16));
    highest[d] = scale.scale.value;
    lowest[d] = scale.zero.value;
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
