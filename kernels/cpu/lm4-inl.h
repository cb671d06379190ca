// Codes and levels of lm4 by halving, from tables that lie in one register.
#if defined(KVERN_KERNELS_CPU_LM4_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_LM4_INL_H_
#undef KVERN_KERNELS_CPU_LM4_INL_H_
#else
#define KVERN_KERNELS_CPU_LM4_INL_H_
#endif

#include <array>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/lm4_table.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Row k, entry p: the boundary that decides bit 3 - k of a code whose higher bits are p.
using Lm4Splits = std::array<std::array<float, 16>, 4>;
constexpr Lm4Splits MakeLm4Splits() {
  Lm4Splits splits = {};
  for (int k = 0; k < 4; ++k) {
    for (int p = 0; p < 1 << k; ++p) {
      splits[k][p] = Lm4Boundary((p << (4 - k)) + (1 << (3 - k)) - 1);
    }
  }
  return splits;
}
alignas(64) inline constexpr Lm4Splits kLm4Splits = MakeLm4Splits();
alignas(64) inline constexpr std::array<float, 16> kLm4LevelTable = std::to_array(kLm4Levels);

// table[index]; `kEntries` <= 16 of them are ever asked for.
template <int kEntries, class D>
HWY_INLINE hn::Vec<D> LookUp(D d, const float* table, hn::Vec<hn::RebindToSigned<D>> index) {
  constexpr int kLanesOfD = static_cast<int>(hn::MaxLanes(D()));
  if constexpr (kEntries <= kLanesOfD) {
    return hn::TableLookupLanes(hn::Load(d, table), hn::IndicesFromVec(d, index));
  } else if constexpr (kEntries == 2 * kLanesOfD) {
    const hn::RebindToSigned<D> integers;
    const auto in_half = hn::IndicesFromVec(d, hn::And(index, hn::Set(integers, kLanesOfD - 1)));
    const auto low = hn::TableLookupLanes(hn::Load(d, table), in_half);
    const auto high = hn::TableLookupLanes(hn::Load(d, table + kLanesOfD), in_half);
    const auto is_high = hn::Gt(index, hn::Set(integers, kLanesOfD - 1));
    return hn::IfThenElse(hn::RebindMask(d, is_high), high, low);
  } else {
    return hn::GatherIndex(d, table, index);
  }
}

template <class D>
HWY_INLINE hn::Vec<D> Lm4LevelOf(D d, hn::Vec<hn::RebindToSigned<D>> code) {
  return LookUp<16>(d, kLm4LevelTable.data(), code);
}

// Boundaries ascend, so halving finds their number below `value`; NaN is above none.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> Lm4CodeOf(D d, hn::Vec<D> value) {
  const hn::RebindToSigned<D> integers;
  auto code = hn::Zero(integers);
  const auto decide = [&](hn::Vec<D> boundary) HWY_ATTR {
    const auto above = hn::BitCast(integers, hn::VecFromMask(d, hn::Gt(value, boundary)));
    code = hn::Sub(hn::Add(code, code), above);
  };
  decide(hn::Set(d, kLm4Splits[0][0]));
  decide(LookUp<2>(d, kLm4Splits[1].data(), code));
  decide(LookUp<4>(d, kLm4Splits[2].data(), code));
  decide(LookUp<8>(d, kLm4Splits[3].data(), code));
  return code;
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_LM4_INL_H_
