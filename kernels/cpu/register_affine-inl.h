// Rows of 128 as affine nibbles, i4t and kch4, and as e4m3, and back.
#if defined(KVERN_KERNELS_CPU_REGISTER_AFFINE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_REGISTER_AFFINE_INL_H_
#undef KVERN_KERNELS_CPU_REGISTER_AFFINE_INL_H_
#else
#define KVERN_KERNELS_CPU_REGISTER_AFFINE_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/affine_rules.h"
#include "kernels/base/fp8.h"
#include "kernels/cpu/register_codes-inl.h"
#include "kernels/cpu/register_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kRowGroups = kRegisterDim / 64;  // of i4t
static_assert(kRowGroups == 2);
inline constexpr int kGroupParts = kParts / kRowGroups;

// The rule of a part's coordinates; `inverse` is InverseScale of the scale.
struct AffinePart {
  hn::Vec<RowTag> scale;
  hn::Vec<RowTag> zero;
  hn::Vec<RowTag> inverse;
};

// Codes x [128] by rule(p) of each part; `rest` becomes what they leave over.
template <class Rule>
HWY_INLINE void StoreAffineCodes(const Rule& rule, const float* HWY_RESTRICT x,
                                 std::byte* HWY_RESTRICT codes, RegisterRow* rest) {
  const RowTag d;
  const hn::RebindToSigned<RowTag> integers;
  const auto magic = hn::Set(d, kRoundingMagic);
  PartInts rounded[kParts];
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const AffinePart of = rule(p);
    const auto value = hn::Load(d, x + p * kPartLanes);
    const auto scaled = hn::Mul(hn::Sub(value, of.zero), of.inverse);
    const auto shifted = hn::Add(hn::Clamp(scaled, hn::Zero(d), hn::Set(d, kI4Levels)), magic);
    rounded[p] = hn::BitCast(integers, shifted);
    const auto code = hn::Sub(shifted, magic);
    rest->part[p] = hn::Sub(value, hn::MulAdd(of.scale, code, of.zero));
  }
  StoreNibbles(rounded, codes);
}

// What a group of i4t is coded by.
struct GroupRule {
  float scale;
  float zero;
  float inverse;
};
HWY_INLINE void StoreI4tCodes(const GroupRule (&rules)[kRowGroups], const float* HWY_RESTRICT x,
                              std::byte* HWY_RESTRICT codes, RegisterRow* rest) {
  const RowTag d;
  const auto rule = [&](int p) HWY_ATTR {
    const GroupRule& of = rules[p / kGroupParts];
    return AffinePart{hn::Set(d, of.scale), hn::Set(d, of.zero), hn::Set(d, of.inverse)};
  };
  StoreAffineCodes(rule, x, codes, rest);
}

// The lanes' largest numbers of a group, and their lowest ones negated.
HWY_INLINE void StoreRangeLanes(const RegisterRow& row, int group, float* HWY_RESTRICT lows,
                                float* HWY_RESTRICT highs) {
  const RowTag d;
  const auto* part = row.part + group * kGroupParts;
  for (int l = 0; l < kLaneParts; ++l) {
    auto low = part[l], high = part[l];
    HWY_UNROLL(8)
    for (int p = l + kLaneParts; p < kGroupParts; p += kLaneParts) {
      low = hn::Min(low, part[p]);
      high = hn::Max(high, part[p]);
    }
    hn::Store(hn::Neg(low), d, lows + l * kPartLanes);
    hn::Store(high, d, highs + l * kPartLanes);
  }
}

// What the channels of a block of kch4 are coded by.
struct ChannelRules {
  alignas(64) float scales[kRegisterDim];
  alignas(64) float zeros[kRegisterDim];
  alignas(64) float inverses[kRegisterDim];
};
HWY_INLINE void StoreKch4Codes(const ChannelRules& rules, const float* HWY_RESTRICT x,
                               std::byte* HWY_RESTRICT codes, RegisterRow* rest) {
  const RowTag d;
  const auto rule = [&](int p) HWY_ATTR {
    const int at = p * kPartLanes;
    return AffinePart{hn::Load(d, rules.scales + at), hn::Load(d, rules.zeros + at),
                      hn::Load(d, rules.inverses + at)};
  };
  StoreAffineCodes(rule, x, codes, rest);
}

// row = scale * code + zero of codes [64 bytes]; one scale and one zero per group.
HWY_INLINE void LoadI4tCodes(const float (&scales)[kRowGroups], const float (&zeros)[kRowGroups],
                             const std::byte* HWY_RESTRICT codes, RegisterRow* row) {
  const RowTag d;
  PartInts code[kParts];
  LoadNibbles(codes, code);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const int group = p / kGroupParts;
    row->part[p] =
        hn::MulAdd(hn::Set(d, scales[group]), hn::ConvertTo(d, code[p]), hn::Set(d, zeros[group]));
  }
}
// One per coordinate.
HWY_INLINE void LoadKch4Codes(const ChannelRules& rules, const std::byte* HWY_RESTRICT codes,
                              RegisterRow* row) {
  const RowTag d;
  PartInts code[kParts];
  LoadNibbles(codes, code);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const int at = p * kPartLanes;
    row->part[p] = hn::MulAdd(hn::Load(d, rules.scales + at), hn::ConvertTo(d, code[p]),
                              hn::Load(d, rules.zeros + at));
  }
}

// e4m3 is f16 with 3 bits of the mantissa, 2^8 times as large: an f16 of these numbers, shifted by
// 7, is its magnitude. Bits beyond the third round away when a power of two 2^20 times the number,
// or times the smallest normal, comes and goes.
inline constexpr float kF16PerE4m3 = 0x1p-8f;
inline constexpr int kDroppedBits = 20;
inline constexpr int kE4m3Shift = 7;

// Codes x [128]; `rest` becomes what they leave over.
HWY_INLINE void StoreFp8Codes(const ScaleRule& rule, const float* HWY_RESTRICT x,
                              std::byte* HWY_RESTRICT codes, RegisterRow* rest) {
  const RowTag d;
  const hn::RebindToSigned<RowTag> bits;
  const hn::Rebind<hwy::float16_t, RowTag> narrow;
  const hn::Repartition<hwy::float16_t, RowTag> halves;
  const hn::Repartition<uint16_t, RowTag> words;
  const hn::Repartition<uint8_t, RowTag> bytes;
  const auto inverse = hn::Set(d, rule.inverse * kF16PerE4m3);
  const auto step = hn::Set(d, rule.step / kF16PerE4m3);
  const auto limit = hn::Set(d, kE4m3Largest * kF16PerE4m3);
  const auto smallest = hn::BitCast(bits, hn::Set(d, kE4m3SmallestNormal * kF16PerE4m3));
  hn::Vec<decltype(narrow)> rounded[kParts];
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto value = hn::Load(d, x + p * kPartLanes);
    const auto scaled = hn::Clamp(hn::Mul(value, inverse), hn::Neg(limit), limit);
    const auto exponent = hn::And(hn::BitCast(bits, scaled), hn::Set(bits, 0x7F800000));
    const auto power = hn::Add(hn::Max(exponent, smallest), hn::Set(bits, kDroppedBits << 23));
    const auto far = hn::CopySign(hn::BitCast(d, power), scaled);
    const auto code = hn::Sub(hn::Add(scaled, far), far);  // a zero is +0
    rounded[p] = hn::DemoteTo(narrow, code);
    rest->part[p] = hn::NegMulAdd(step, code, value);
  }
  // The sign, which stands one bit too high for a byte, is doubled downwards.
  const auto join = [&](int p) HWY_ATTR {
    const auto both = hn::BitCast(words, hn::Combine(halves, rounded[p + 1], rounded[p]));
    const auto sign = hn::And(hn::ShiftRight<1>(both), hn::Set(words, uint16_t{0x4000}));
    return hn::BitCast(bytes, hn::ShiftRight<kE4m3Shift>(hn::Or(both, sign)));
  };
  HWY_UNROLL(4)
  for (int p = 0; p < kParts; p += 4) {
    StorePast(bytes, hn::ConcatEven(bytes, join(p + 2), join(p)),
              reinterpret_cast<uint8_t*>(codes) + p * kPartLanes);
  }
}

// row = scale * codes [128].
HWY_INLINE void LoadFp8Codes(float scale, const std::byte* HWY_RESTRICT codes, RegisterRow* row) {
  const RowTag d;
  const hn::Rebind<int8_t, RowTag> narrow;
  const hn::Rebind<int16_t, RowTag> words;
  const hn::Rebind<hwy::float16_t, RowTag> halves;
  const auto* from = reinterpret_cast<const int8_t*>(codes);
  const auto step = hn::Set(d, scale / kF16PerE4m3);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto code = hn::PromoteTo(words, hn::LoadU(narrow, from + p * kPartLanes));
    // Widening left the sign in the bit below its place as well.
    const auto half =
        hn::And(hn::ShiftLeft<kE4m3Shift>(code), hn::Set(words, static_cast<int16_t>(0xBFFF)));
    row->part[p] = hn::Mul(step, hn::PromoteTo(d, hn::BitCast(halves, half)));
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
