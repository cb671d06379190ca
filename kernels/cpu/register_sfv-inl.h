// Rows of 128 as vectors of sfv2 and sfv3 and back. A search of sfv3 has the few vectors of a cell
// in the lanes, one of sfv2 the blocks; levels are f16 until they are used, four to a word.
#if defined(KVERN_KERNELS_CPU_REGISTER_SFV_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_REGISTER_SFV_INL_H_
#undef KVERN_KERNELS_CPU_REGISTER_SFV_INL_H_
#else
#define KVERN_KERNELS_CPU_REGISTER_SFV_INL_H_
#endif

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "hwy/highway.h"
#include "kernels/base/sfv_rules.h"
#include "kernels/cpu/register_codes-inl.h"
#include "kernels/cpu/register_row-inl.h"
#include "kernels/cpu/sfv-inl.h"
#include "kernels/cpu/sfv_cells.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kSfvBlocks = kRegisterDim / kSfvCoords;  // of a row
inline constexpr int kSignBytes = kRegisterDim / 8;
inline constexpr size_t kMaskRoom = 8;  // what a store of mask bits may touch

// What a search works on.
struct SfvSearch {
  alignas(64) float magnitudes[kRegisterDim];  // |x * normalizer|
  alignas(64) int32_t cells[kRegisterDim];     // of block b at [4 b]
  alignas(64) int32_t numbers[kSfvBlocks];
  uint8_t signs[kSignBytes + kMaskRoom];  // coordinate 8 i + j at bit j of byte i
};

HWY_INLINE void StartSearch(float normalizer, const float* HWY_RESTRICT x, SfvSearch* search) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto value = hn::Mul(hn::Load(d, x + p * kPartLanes), hn::Set(d, normalizer));
    hn::Store(hn::Abs(value), d, search->magnitudes + p * kPartLanes);
    hn::StoreMaskBits(d, hn::Lt(value, hn::Zero(d)), search->signs + p * kPartLanes / 8);
  }
}

HWY_INLINE void FindCells(SfvSearch* search) {
  const RowTag d;
  const hn::RebindToSigned<RowTag> integers;
  alignas(64) static constexpr int32_t kShifts[16] = {0, 3, 6, 9, 0, 3, 6, 9,
                                                      0, 3, 6, 9, 0, 3, 6, 9};
  static_assert(kSfvIntervalBits == 3);
  const auto shifts = hn::Load(integers, kShifts);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto magnitude = hn::Load(d, search->magnitudes + p * kPartLanes);
    const auto scaled = hn::Mul(magnitude, hn::Set(d, 1.0f / kSfvIntervalWidth));
    const auto interval =
        hn::ConvertTo(integers, hn::Min(scaled, hn::Set(d, kSfvIntervals - 1.0f)));
    auto cell = hn::Shl(interval, shifts);
    cell = hn::Or(cell, hn::Shuffle2301(cell));
    cell = hn::Or(cell, hn::Shuffle1032(cell));
    hn::Store(cell, integers, search->cells + p * kPartLanes);
  }
}

// Of a block to the vectors of one record.
struct SfvDistances {
  hn::Vec<RowTag> part[kLaneParts];
};
HWY_INLINE SfvDistances DistancesOf(const SfvRecord& record, const float* HWY_RESTRICT magnitudes) {
  const RowTag d;
  const hn::Rebind<hwy::float16_t, RowTag> narrow;
  SfvDistances distances;
  for (int p = 0; p < kLaneParts; ++p) {
    auto sum = hn::Load(d, record.half_square + p * kPartLanes);
    HWY_UNROLL(4)
    for (int j = 0; j < kSfvCoords; ++j) {
      const auto* halves = reinterpret_cast<const hwy::float16_t*>(record.magnitude[j]);
      const auto of_vector = hn::PromoteTo(d, hn::Load(narrow, halves + p * kPartLanes));
      sum = hn::NegMulAdd(hn::Set(d, magnitudes[j]), of_vector, sum);
    }
    distances.part[p] = sum;
  }
  return distances;
}
HWY_INLINE hn::Vec<RowTag> Fold(const SfvDistances& distances) {
  auto least = distances.part[0];
  for (int p = 1; p < kLaneParts; ++p) least = hn::Min(least, distances.part[p]);
  return least;
}

// Lane k of every four: the least distance of block k of a quad.
template <int kRegisterLanes = kPartLanes>
HWY_INLINE hn::Vec<RowTag> LeastOfQuad(const SfvDistances (&quad)[4]) {
  const RowTag d;
  const hn::Repartition<double, RowTag> pairs;
  const auto a = Fold(quad[0]), b = Fold(quad[1]), c = Fold(quad[2]), e = Fold(quad[3]);
  const auto ab = hn::Min(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const auto ce = hn::Min(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto x = hn::BitCast(pairs, ab), y = hn::BitCast(pairs, ce);
  auto least = hn::Min(hn::BitCast(d, hn::InterleaveLower(pairs, x, y)),
                       hn::BitCast(d, hn::InterleaveUpper(pairs, x, y)));
  if constexpr (kRegisterLanes >= 8) least = hn::Min(least, hn::SwapAdjacentBlocks(least));
  if constexpr (kRegisterLanes == 16) least = hn::Min(least, hn::ConcatLowerUpper(d, least, least));
  return least;
}

// The first slot at a distance that one of them has.
template <int kRegisters = kLaneParts>
HWY_INLINE size_t SlotAt(const SfvDistances& distances, hn::Vec<RowTag> distance) {
  const RowTag d;
  if constexpr (kRegisters == 1) {
    return hn::FindKnownFirstTrue(d, hn::Eq(distances.part[0], distance));
  } else if constexpr (kRegisters == 2) {
    const hn::RebindToSigned<RowTag> integers;
    const hn::Repartition<uint16_t, RowTag> halves;
    const auto low = hn::VecFromMask(d, hn::Eq(distances.part[0], distance));
    const auto high = hn::VecFromMask(d, hn::Eq(distances.part[1], distance));
    const auto both = JoinLow16(hn::BitCast(integers, low), hn::BitCast(integers, high));
    return hn::FindKnownFirstTrue(halves, hn::Ne(both, hn::Zero(halves)));
  } else {
    int p = 0;
    while (hn::AllFalse(d, hn::Eq(distances.part[p], distance))) ++p;
    return p * kPartLanes + hn::FindKnownFirstTrue(d, hn::Eq(distances.part[p], distance));
  }
}

// A block whose cell has more than one record.
HWY_NOINLINE inline uint8_t NearestOfMany(const SfvCells& cells, uint16_t entry,
                                          const float* HWY_RESTRICT magnitudes) {
  const RowTag d;
  const int32_t first = entry & (SfvCells::kMore - 1);
  float least = 0.0f;
  uint8_t number = 0;
  for (int32_t record = first; record < first + cells.RecordsFrom(first); ++record) {
    const SfvDistances distances = DistancesOf(cells.Record(record), magnitudes);
    const auto nearest = hn::MinOfLanes(d, Fold(distances));
    if (record > first && !(hn::GetLane(nearest) < least)) continue;
    least = hn::GetLane(nearest);
    number = cells.Numbers(record)[SlotAt(distances, nearest)];
  }
  return number;
}

// numbers[k] of block b + k, for k in [0, 4).
HWY_INLINE void FindQuad(const SfvCells& cells, const SfvSearch& search, int b,
                         uint8_t (&numbers)[4]) {
  uint16_t entry[4];
  HWY_UNROLL(4)
  for (int k = 0; k < 4; ++k) entry[k] = cells.Entry(search.cells[(b + k) * kSfvCoords]);
  const float* magnitudes = search.magnitudes + b * kSfvCoords;
  if (HWY_UNLIKELY(((entry[0] | entry[1] | entry[2] | entry[3]) & SfvCells::kMore) != 0)) {
    for (int k = 0; k < 4; ++k) {
      numbers[k] = NearestOfMany(cells, entry[k], magnitudes + k * kSfvCoords);
    }
    return;
  }
  SfvDistances quad[4];
  HWY_UNROLL(4)
  for (int k = 0; k < 4; ++k) {
    quad[k] = DistancesOf(cells.Record(entry[k]), magnitudes + k * kSfvCoords);
  }
  const auto least = LeastOfQuad(quad);
  numbers[0] = cells.Numbers(entry[0])[SlotAt(quad[0], hn::Broadcast<0>(least))];
  numbers[1] = cells.Numbers(entry[1])[SlotAt(quad[1], hn::Broadcast<1>(least))];
  numbers[2] = cells.Numbers(entry[2])[SlotAt(quad[2], hn::Broadcast<2>(least))];
  numbers[3] = cells.Numbers(entry[3])[SlotAt(quad[3], hn::Broadcast<3>(least))];
}

// Rows shorter than this have lost so much of their squares that a coordinate may be beyond
// kSfvReach.
inline constexpr float kSfvShortest = 1e-30f;

// numbers [kSfvBlocks] of the nearest vectors by looking at all of them.
HWY_NOINLINE inline void SearchAll(std::span<const SfvVector> vectors, SfvSearch* search) {
  for (int first = 0; first < kRegisterDim; first += static_cast<int>(kSfvStride)) {
    NearestVectors(vectors, search->magnitudes + first, search->numbers + first / kSfvCoords);
  }
}

// Codes [32] and levels [32] of a search that was started.
HWY_INLINE void FindSfv3(float squared_length, SfvSearch* search, std::byte* codes,
                         uint64_t* HWY_RESTRICT halves) {
  const auto put = [&](int b, const uint8_t(&numbers)[4]) HWY_ATTR {
    std::memcpy(codes + b, numbers, sizeof(numbers));
    HWY_UNROLL(4)
    for (int k = 0; k < 4; ++k) halves[b + k] = kSfv3Halves[numbers[k]];
  };
  if (HWY_LIKELY(squared_length > kSfvShortest)) {
    const SfvCells& cells = SfvCells::Of3();
    FindCells(search);
    for (int b = 0; b < kSfvBlocks; b += 4) {
      uint8_t numbers[4];
      FindQuad(cells, *search, b, numbers);
      put(b, numbers);
    }
    return;
  }
  SearchAll(kSfv3Vectors, search);
  for (int b = 0; b < kSfvBlocks; b += 4) {
    uint8_t numbers[4];
    for (int k = 0; k < 4; ++k) numbers[k] = static_cast<uint8_t>(search->numbers[b + k]);
    put(b, numbers);
  }
}
HWY_INLINE void FindSfv2(SfvSearch* search, std::byte* codes, uint64_t* HWY_RESTRICT halves) {
  SearchAll(kSfv2Vectors, search);
  for (int b = 0; b < kSfvBlocks; b += 4) {
    // The four nibbles of 16 signs to a byte each.
    uint32_t bytes = search->signs[b / 2] | uint32_t{search->signs[b / 2 + 1]} << 8;
    bytes = (bytes | bytes << 8) & 0x00FF00FFu;
    bytes = (bytes | bytes << 4) & 0x0F0F0F0Fu;
    HWY_UNROLL(4)
    for (int k = 0; k < 4; ++k) {
      bytes |= static_cast<uint32_t>(search->numbers[b + k]) << (8 * k + kSfvCoords);
      halves[b + k] = kSfv2Halves[search->numbers[b + k]];
    }
    std::memcpy(codes + b, &bytes, sizeof(bytes));
  }
}

// The parts of x [128] * normalizer and of its levels, one after the other.
template <class Step>
HWY_INLINE void ForEachLevel(float normalizer, const float* HWY_RESTRICT x,
                             const uint64_t* HWY_RESTRICT halves, const Step& step) {
  const RowTag d;
  const hn::Rebind<hwy::float16_t, RowTag> narrow;
  const auto* from = reinterpret_cast<const hwy::float16_t*>(halves);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto value = hn::Mul(hn::Load(d, x + p * kPartLanes), hn::Set(d, normalizer));
    const auto magnitude = hn::PromoteTo(d, hn::Load(narrow, from + p * kPartLanes));
    const auto negative = hn::Lt(value, hn::Zero(d));
    step(p, value, hn::IfThenElse(negative, hn::Neg(magnitude), magnitude));
  }
}

// A code byte of sfv2 as four levels.
constexpr std::array<uint64_t, 256> MakeSfv2Signed() {
  std::array<uint64_t, 256> levels = {};
  for (size_t code = 0; code < levels.size(); ++code) {
    levels[code] = kSfv2Halves[code >> kSfvCoords];
    for (int j = 0; j < kSfvCoords; ++j) levels[code] |= (code >> j & uint64_t{1}) << (16 * j + 15);
  }
  return levels;
}
inline constexpr std::array<uint64_t, 256> kSfv2Signed = MakeSfv2Signed();

// halves [32] = table[codes [32]].
HWY_INLINE void ExpandSfv(const std::array<uint64_t, 256>& table, const std::byte* codes,
                          uint64_t* HWY_RESTRICT halves) {
  for (int b = 0; b < kSfvBlocks; ++b) halves[b] = table[static_cast<uint8_t>(codes[b])];
}

// row = scale * levels, which change their sign where `signs` has a bit.
HWY_INLINE void LoadSfvLevels(float scale, const uint64_t* HWY_RESTRICT halves,
                              const uint8_t* HWY_RESTRICT signs, RegisterRow* row) {
  const RowTag d;
  const hn::Rebind<hwy::float16_t, RowTag> narrow;
  const auto* from = reinterpret_cast<const hwy::float16_t*>(halves);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto magnitude = hn::PromoteTo(d, hn::Load(narrow, from + p * kPartLanes));
    const auto negative = hn::LoadMaskBits(d, signs + p * kPartLanes / 8);
    const auto level = hn::IfThenElse(negative, hn::Neg(magnitude), magnitude);
    row->part[p] = hn::Mul(hn::Set(d, scale), level);
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
