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
#include <cstring>
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

// Adding it rounds a magnitude below 2^22 to an integer, ties to even, whose two's complement the
// low half of the bits then shows.
inline constexpr float kRoundingMagic = 0x1.8p23f;
inline constexpr float kSmallestNormalF16 = 0x1p-14f;

// What a row is coded by that has one scale.
struct ScaleRule {
  float inverse;
  float step;
};
enum class CodeRange : uint8_t { kKnown, kClamped };

// Codes x [128]; `rest` becomes what they leave over.
template <CodeRange kRange>
HWY_INLINE void StoreI8Codes(const ScaleRule& rule, const float* HWY_RESTRICT x,
                             std::byte* HWY_RESTRICT codes, RegisterRow* rest) {
  const RowTag d;
  const hn::RebindToSigned<RowTag> integers;
  const hn::Repartition<uint8_t, RowTag> bytes;
  const auto magic = hn::Set(d, kRoundingMagic);
  PartInts rounded[kParts];
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto value = hn::Load(d, x + p * kPartLanes);
    auto scaled = hn::Mul(value, hn::Set(d, rule.inverse));
    if constexpr (kRange == CodeRange::kClamped) {
      scaled = hn::Clamp(scaled, hn::Set(d, -kI8Levels), hn::Set(d, kI8Levels));
    }
    const auto shifted = hn::Add(scaled, magic);
    const auto code = hn::Sub(shifted, magic);
    rounded[p] = hn::BitCast(integers, shifted);
    rest->part[p] = hn::NegMulAdd(hn::Set(d, rule.step), code, value);
  }
  HWY_UNROLL(4)
  for (int p = 0; p < kParts; p += 4) {
    const auto low = hn::BitCast(bytes, JoinLow16(rounded[p], rounded[p + 1]));
    const auto high = hn::BitCast(bytes, JoinLow16(rounded[p + 2], rounded[p + 3]));
    StorePast(bytes, hn::ConcatEven(bytes, high, low),
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
  const hn::RebindToSigned<D> integers;
  const auto near = hn::Clamp(value, hn::Set(d, -kReach), hn::Set(d, kReach));
  const auto slope = hn::NegMulAdd(hn::Mul(near, near), hn::Set(d, kCubic), hn::Set(d, kLinear));
  const auto shifted = hn::MulAdd(slope, near, hn::Set(d, kRoundingMagic + 7));
  const auto nearest = hn::And(hn::BitCast(integers, shifted), hn::Set(integers, 15));
  const auto boundary = LookUp<16>(d, kLm4BoundaryTable.data(), nearest);
  const auto above = hn::VecFromMask(d, hn::Gt(value, boundary));
  return hn::Sub(nearest, hn::BitCast(integers, above));
}

// The low nibbles of the low halves of `code`, in the order of kLm4Shifts.
HWY_INLINE void StoreNibbles(const PartInts (&code)[kParts], std::byte* HWY_RESTRICT codes) {
  const hn::Repartition<uint32_t, RowTag> pairs;
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
    StorePast(pairs, hn::Or(even, hn::ShiftLeft<8>(odd)),
              reinterpret_cast<uint32_t*>(codes) + p * kPartLanes / 8);
  }
}

// The levels nearest to x [128] * normalizer, and their codes. With a normalizer of 0 codes stay as
// they are.
HWY_INLINE void FindLm4Levels(float normalizer, const float* HWY_RESTRICT x,
                              std::byte* HWY_RESTRICT codes, RegisterRow* levels) {
  const RowTag d;
  PartInts code[kParts];
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto value = hn::Mul(hn::Load(d, x + p * kPartLanes), hn::Set(d, normalizer));
    code[p] = Lm4CodeByCubic(d, value);
    levels->part[p] = Lm4LevelOf(d, code[p]);
  }
  if (normalizer != 0.0f) StoreNibbles(code, codes);
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

// row = scale * codes [128].
HWY_INLINE void LoadI8Codes(float scale, const int8_t* HWY_RESTRICT codes, RegisterRow* row) {
  const RowTag d;
  const hn::RebindToSigned<RowTag> integers;
  const hn::Rebind<int8_t, RowTag> narrow;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto code = hn::PromoteTo(integers, hn::LoadU(narrow, codes + p * kPartLanes));
    row->part[p] = hn::Mul(hn::Set(d, scale), hn::ConvertTo(d, code));
  }
}

// Lane i: the bit of its group's word where the code of coordinate i starts.
constexpr std::array<uint32_t, 16> MakeLm4LaneShifts() {
  std::array<uint32_t, 16> shifts = {};
  for (int i = 0; i < 16; ++i) shifts[i] = static_cast<uint32_t>(kLm4Shifts[i % 8]);
  return shifts;
}
alignas(64) inline constexpr std::array<uint32_t, 16> kLm4LaneShifts = MakeLm4LaneShifts();
// Coordinate i: the word of its group.
constexpr std::array<int32_t, kRegisterDim> MakeLm4WordIndices() {
  std::array<int32_t, kRegisterDim> words = {};
  for (int i = 0; i < kRegisterDim; ++i) words[i] = i / 8;
  return words;
}
alignas(64) inline constexpr std::array<int32_t, kRegisterDim> kLm4WordIndices =
    MakeLm4WordIndices();

// code[p] = the nibbles of part p of codes [64 bytes], in their lanes.
HWY_INLINE void LoadNibbles(const std::byte* HWY_RESTRICT codes, PartInts (&code)[kParts]) {
  const hn::RebindToUnsigned<RowTag> words;
  const hn::RebindToSigned<RowTag> integers;
  const auto shifts = hn::Load(words, kLm4LaneShifts.data());
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    hn::Vec<decltype(words)> word;
    if constexpr (kPartLanes == 16) {  // one register has all words
      const auto all = hn::LoadU(words, reinterpret_cast<const uint32_t*>(codes));
      const auto index = hn::SetTableIndices(words, kLm4WordIndices.data() + p * kPartLanes);
      word = hn::TableLookupLanes(all, index);
    } else {
      uint32_t of_group;
      std::memcpy(&of_group, codes + p * kPartLanes / 2, sizeof(of_group));
      word = hn::Set(words, of_group);
    }
    code[p] = hn::BitCast(integers, hn::And(hn::Shr(word, shifts), hn::Set(words, 15u)));
  }
}

// row = scale * levels of codes [64 bytes].
HWY_INLINE void LoadLm4Codes(float scale, const std::byte* HWY_RESTRICT codes, RegisterRow* row) {
  const RowTag d;
  PartInts code[kParts];
  LoadNibbles(codes, code);
  if constexpr (kPartLanes == 16) {
    // All levels in one register, which is as good as scaled one by one.
    const auto levels = hn::Mul(hn::Load(d, kLm4LevelTable.data()), hn::Set(d, scale));
    HWY_UNROLL(16)
    for (int p = 0; p < kParts; ++p) {
      row->part[p] = hn::TableLookupLanes(levels, hn::IndicesFromVec(d, code[p]));
    }
  } else {
    HWY_UNROLL(16)
    for (int p = 0; p < kParts; ++p) {
      row->part[p] = hn::Mul(hn::Set(d, scale), Lm4LevelOf(d, code[p]));
    }
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_REGISTER_CODES_INL_H_
