// Between a head of 128 in registers and its codes.
#if defined(KVERN_KERNELS_CPU_REGISTER_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_REGISTER_CODES_INL_H_
#undef KVERN_KERNELS_CPU_REGISTER_CODES_INL_H_
#else
#define KVERN_KERNELS_CPU_REGISTER_CODES_INL_H_
#endif

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernels/base/coding.h"
#include "kernels/base/lm4_table.h"
#include "kernels/cpu/lm4-inl.h"
#include "kernels/cpu/register_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using PartInts = hn::Vec<hn::RebindToSigned<RowTag>>;

// [kParts * kPartLanes] integers that fit 16 bits, in two halves of a register's lanes: natural
// order.
HWY_INLINE hn::Vec<hn::Repartition<uint16_t, RowTag>> JoinLow16(PartInts low, PartInts high) {
  const hn::Repartition<uint16_t, RowTag> d;
  return hn::ConcatEven(d, hn::BitCast(d, high), hn::BitCast(d, low));
}

inline constexpr float kSmallestNormalF16 = 0x1p-14f;

struct I8Rule {
  float inverse;
  float step;
};
enum class CodeRange : uint8_t { kKnown, kClamped };

// Codes x [128]; `rest` becomes what they leave over.
template <CodeRange kRange>
HWY_INLINE void StoreI8Codes(const I8Rule& rule, const float* HWY_RESTRICT x,
                             int8_t* HWY_RESTRICT codes, RegisterRow* rest) {
  const RowTag d;
  const hn::RebindToSigned<RowTag> integers;
  const hn::Repartition<uint8_t, RowTag> bytes;
  PartInts rounded[kParts];
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto value = hn::Load(d, x + p * kPartLanes);
    auto code = hn::Round(hn::Mul(value, hn::Set(d, rule.inverse)));
    if constexpr (kRange == CodeRange::kClamped) {
      code = hn::Clamp(code, hn::Set(d, -kI8Levels), hn::Set(d, kI8Levels));
    }
    rounded[p] = hn::ConvertTo(integers, code);
    rest->part[p] = hn::NegMulAdd(hn::Set(d, rule.step), code, value);
  }
  HWY_UNROLL(4)
  for (int p = 0; p < kParts; p += 4) {
    const auto low = hn::BitCast(bytes, JoinLow16(rounded[p], rounded[p + 1]));
    const auto high = hn::BitCast(bytes, JoinLow16(rounded[p + 2], rounded[p + 3]));
    hn::StoreU(hn::ConcatEven(bytes, high, low), bytes,
               reinterpret_cast<uint8_t*>(codes) + p * kPartLanes);
  }
}

// Boundary i; above the last there is none.
constexpr std::array<float, 16> MakeLm4Boundaries() {
  std::array<float, 16> boundaries = {};
  for (int i = 0; i < kLm4Boundaries; ++i) boundaries[i] = Lm4Boundary(i);
  boundaries[kLm4Boundaries] = std::numeric_limits<float>::infinity();
  return boundaries;
}
alignas(64) inline constexpr std::array<float, 16> kLm4BoundaryTable = MakeLm4Boundaries();

// An odd cubic takes boundary i to i - 7 within 0.07, so the boundary nearest to it is the only one
// that `value` has to be compared with. Beyond the last boundary the cubic would turn back.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> Lm4CodeByCubic(D d, hn::Vec<D> value) {
  constexpr float kReach = 2.8f, kLinear = 3.852f, kCubic = 0.1598f;
  // Adding it rounds to an integer, which the low bits then show.
  constexpr float kRoundingMagic = 0x1.8p23f + 7;
  const hn::RebindToSigned<D> integers;
  const auto near = hn::Clamp(value, hn::Set(d, -kReach), hn::Set(d, kReach));
  const auto slope = hn::NegMulAdd(hn::Mul(near, near), hn::Set(d, kCubic), hn::Set(d, kLinear));
  const auto shifted = hn::MulAdd(slope, near, hn::Set(d, kRoundingMagic));
  const auto nearest = hn::And(hn::BitCast(integers, shifted), hn::Set(integers, 15));
  const auto boundary = LookUp<16>(d, kLm4BoundaryTable.data(), nearest);
  const auto above = hn::VecFromMask(d, hn::Gt(value, boundary));
  return hn::Sub(nearest, hn::BitCast(integers, above));
}

// The levels nearest to x [128] * normalizer, and their codes. With a normalizer of 0 codes stay as
// they are.
HWY_INLINE void FindLm4Levels(float normalizer, const float* HWY_RESTRICT x,
                              std::byte* HWY_RESTRICT codes, RegisterRow* levels) {
  const RowTag d;
  const hn::Repartition<uint32_t, RowTag> pairs;
  PartInts code[kParts];
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto value = hn::Mul(hn::Load(d, x + p * kPartLanes), hn::Set(d, normalizer));
    code[p] = Lm4CodeByCubic(d, value);
    levels->part[p] = Lm4LevelOf(d, code[p]);
  }
  if (normalizer == 0.0f) return;
  // A word is the four pairs (2 i, 2 i + 1) of a group, their halves 16 bits apart, at 4 i.
  HWY_UNROLL(2)
  for (int p = 0; p < kParts; p += 8) {
    hn::Vec<decltype(pairs)> words[4];
    HWY_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      words[i] = hn::BitCast(pairs, JoinLow16(code[p + 2 * i], code[p + 2 * i + 1]));
    }
    HWY_UNROLL(2)
    for (int i = 0; i < 2; ++i) {
      const auto even = hn::ConcatEven(pairs, words[2 * i + 1], words[2 * i]);
      const auto odd = hn::ConcatOdd(pairs, words[2 * i + 1], words[2 * i]);
      words[i] = hn::Or(even, hn::ShiftLeft<4>(odd));
    }
    const auto even = hn::ConcatEven(pairs, words[1], words[0]);
    const auto odd = hn::ConcatOdd(pairs, words[1], words[0]);
    hn::StoreU(hn::Or(even, hn::ShiftLeft<8>(odd)), pairs,
               reinterpret_cast<uint32_t*>(codes) + p * kPartLanes / 8);
  }
}

// rest = x - step * levels.
HWY_INLINE void LeaveOver(float step, const float* HWY_RESTRICT x, const float* HWY_RESTRICT levels,
                          RegisterRow* rest) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto level = hn::Load(d, levels + p * kPartLanes);
    rest->part[p] = hn::NegMulAdd(hn::Set(d, step), level, hn::Load(d, x + p * kPartLanes));
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_REGISTER_CODES_INL_H_
