// Codes of a batch of rows of 128. Divisions, square roots and the ends of sums fill registers with
// one number per row, so that no row waits for its own.
#if defined(KVERN_KERNELS_CPU_REGISTER_BATCH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_REGISTER_BATCH_INL_H_
#undef KVERN_KERNELS_CPU_REGISTER_BATCH_INL_H_
#else
#define KVERN_KERNELS_CPU_REGISTER_BATCH_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/base/coding.h"
#include "kernels/base/fp8.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/register_affine-inl.h"
#include "kernels/cpu/register_codes-inl.h"
#include "kernels/cpu/register_row-inl.h"
#include "kernels/cpu/register_sfv-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kBatchRows = 16;
inline constexpr int kBatchGroups = kBatchRows * kRowGroups;

struct EncodeBatch {
  RegisterHadamard hadamard;
  alignas(64) float rows[kBatchRows][kRegisterDim];    // what is coded
  alignas(64) float levels[kBatchRows][kRegisterDim];  // of lm4 and sfv
  alignas(64) float mean[kRegisterDim];                // un-rotated
  alignas(64) float turned[2][kRegisterDim];           // a pair's means at their angles
  alignas(64) float spoilt[kRegisterDim];              // a row to sanitise
  alignas(64) float norm_lanes[kBatchRows][kLanes];
  alignas(64) float error_lanes[kBatchRows][kLanes];
  // Of each row: squared lengths or largest magnitudes. Of each group of i4t: its largest numbers,
  // and its lowest ones negated.
  alignas(64) float lanes[kBatchGroups][kLanes];
  alignas(64) float low_lanes[kBatchGroups][kLanes];
  alignas(64) float lengths[kBatchGroups];  // the lanes come together, one number per row
  alignas(64) float lows[kBatchGroups];
  alignas(64) float sums[kBatchRows];       // of levels
  alignas(64) float factors[kBatchGroups];  // what a row is multiplied by before it is rounded
  alignas(64) float steps[kBatchGroups];    // scales, rounded
  alignas(64) float zeros[kBatchGroups];    // rounded
  alignas(64) float norms[kBatchRows];
  alignas(64) float errors[kBatchRows];
  alignas(64) uint64_t halves[kBatchRows][kSfvBlocks];  // levels of sfv without their signs
  SfvSearch search;
  ChannelRules channels;
};

// values [kCount], at most kLargestCoded of each, rounded to f16; the first `stored_count` of them
// are stored.
template <int kCount>
HWY_INLINE void RoundScales(float* HWY_RESTRICT values, int stored_count, std::byte* stored) {
  const RowTag d;
  const hn::Rebind<hwy::float16_t, RowTag> narrow;
  HWY_ALIGN hwy::float16_t halves[kCount];
  for (int i = 0; i < kCount; i += kPartLanes) {
    const auto value = hn::Min(hn::Load(d, values + i), hn::Set(d, kLargestCoded));
    const auto rounded = hn::DemoteTo(narrow, value);
    hn::Store(rounded, narrow, halves + i);
    hn::Store(hn::PromoteTo(d, rounded), d, values + i);
  }
  std::memcpy(stored, halves, stored_count * sizeof(Float16));
}
// inverses = InverseScale of scales.
template <int kCount>
HWY_INLINE void InvertScales(const float* HWY_RESTRICT scales, float* HWY_RESTRICT inverses) {
  const RowTag d;
  for (int i = 0; i < kCount; i += kPartLanes) {
    const auto scale = hn::Load(d, scales + i);
    const auto inverse = hn::Div(hn::Set(d, 1.0f), scale);
    hn::Store(hn::IfThenElseZero(hn::Gt(scale, hn::Zero(d)), inverse), d, inverses + i);
  }
}
// AffineScaleOf before it rounds. Unlike the lows of a batch, `lowest` is not negated.
template <int kCount>
HWY_INLINE void RangesToScales(const float* HWY_RESTRICT lowest, const float* HWY_RESTRICT highest,
                               float* HWY_RESTRICT scales, float* HWY_RESTRICT zeros) {
  const RowTag d;
  for (int i = 0; i < kCount; i += kPartLanes) {
    const auto low = hn::Load(d, lowest + i);
    const auto range = hn::Sub(hn::Load(d, highest + i), low);
    const auto scale = hn::Add(hn::Div(range, hn::Set(d, kI4Levels)), hn::Zero(d));
    const auto zero = hn::Add(hn::Max(low, hn::Set(d, -kLargestCoded)), hn::Zero(d));
    hn::Store(scale, d, scales + i);
    hn::Store(zero, d, zeros + i);
  }
}

// Writes the rows of a batch whose numbers are there: rows, lanes, norms.
class BatchCoder {
 public:
  BatchCoder(const PackedRow& row, const PackedPlanes& planes, std::byte* packed)
      : row_(row), planes_(planes), packed_(packed) {}

  // Rows [0, count) are tokens [first, first + count); leaves the lanes of their squared errors.
  HWY_INLINE void Code(int64_t first, int count, EncodeBatch& batch) const {
    switch (static_cast<CodecId>(row_.codec)) {
      case CodecId::kI8t:
        return CodeByLargest<CodecId::kI8t>(first, count, batch);
      case CodecId::kFp8t:
        return CodeByLargest<CodecId::kFp8t>(first, count, batch);
      case CodecId::kI4t:
        return CodeGroups(first, count, batch);
      case CodecId::kSfv2:
        return CodeLevels<CodecId::kSfv2>(first, count, batch);
      case CodecId::kSfv3:
        return CodeLevels<CodecId::kSfv3>(first, count, batch);
      default:
        return CodeLevels<CodecId::kLm4>(first, count, batch);
    }
  }

  // kch4: from the lowest and highest of each channel, which become zeros and scales.
  void SetChannels(EncodeBatch& batch) const {
    ChannelRules& rules = batch.channels;
    float* lowest = rules.zeros;
    float* highest = rules.scales;
    RangesToScales<kRegisterDim>(lowest, highest, rules.scales, rules.zeros);
    RoundScales<kRegisterDim>(rules.scales, kRegisterDim, packed_ + planes_.scales);
    RoundScales<kRegisterDim>(rules.zeros, kRegisterDim, packed_ + planes_.zeros);
    InvertScales<kRegisterDim>(rules.scales, rules.inverses);
  }
  HWY_INLINE void CodeChannels(int64_t first, int count, EncodeBatch& batch) const {
    for (int r = 0; r < count; ++r) {
      RegisterRow rest;
      StoreKch4Codes(batch.channels, batch.rows[r], Codes(first + r), &rest);
      StoreLanes(SquareLanes(rest), batch.error_lanes[r]);
    }
  }

 private:
  std::byte* Codes(int64_t token) const {
    return packed_ + planes_.codes + token * planes_.code_row_bytes;
  }
  std::byte* Scales(int64_t token) const {
    return packed_ + planes_.scales + token * planes_.scale_row_bytes;
  }

  template <CodecId kCodec>
  HWY_INLINE void CodeByLargest(int64_t first, int count, EncodeBatch& batch) const {
    const RowTag d;
    constexpr float kLevels = kCodec == CodecId::kI8t ? kI8Levels : kE4m3Largest;
    for (int r = 0; r < count; r += 4) StoreTreeMaxima(batch.lanes[r], batch.lengths + r);
    for (int r = 0; r < kBatchRows; r += kPartLanes) {
      const auto largest = hn::Load(d, batch.lengths + r);
      hn::Store(hn::Div(largest, hn::Set(d, kLevels)), d, batch.steps + r);
    }
    RoundScales<kBatchRows>(batch.steps, count, Scales(first));
    InvertScales<kBatchRows>(batch.steps, batch.factors);
    for (int r = 0; r < count; ++r) {
      const ScaleRule rule = {batch.factors[r], batch.steps[r]};
      RegisterRow rest;
      if constexpr (kCodec == CodecId::kFp8t) {
        StoreFp8Codes(rule, batch.rows[r], Codes(first + r), &rest);
      } else if (HWY_LIKELY(!(rule.step < kSmallestNormalF16))) {
        // The step of a normal scale is near enough to a 127th of the largest for none to be above.
        StoreI8Codes<CodeRange::kKnown>(rule, batch.rows[r], Codes(first + r), &rest);
      } else {
        StoreI8Codes<CodeRange::kClamped>(rule, batch.rows[r], Codes(first + r), &rest);
      }
      StoreLanes(SquareLanes(rest), batch.error_lanes[r]);
    }
  }

  HWY_INLINE void CodeGroups(int64_t first, int count, EncodeBatch& batch) const {
    const RowTag d;
    const int groups = count * kRowGroups;
    for (int g = 0; g < groups; g += 4) {
      StoreTreeMaxima(batch.lanes[g], batch.lengths + g);
      StoreTreeMaxima(batch.low_lanes[g], batch.lows + g);
    }
    for (int g = 0; g < kBatchGroups; g += kPartLanes) {
      hn::Store(hn::Neg(hn::Load(d, batch.lows + g)), d, batch.lows + g);
    }
    RangesToScales<kBatchGroups>(batch.lows, batch.lengths, batch.steps, batch.zeros);
    RoundScales<kBatchGroups>(batch.steps, groups, Scales(first));
    RoundScales<kBatchGroups>(batch.zeros, groups,
                              packed_ + planes_.zeros + first * planes_.scale_row_bytes);
    InvertScales<kBatchGroups>(batch.steps, batch.factors);
    for (int r = 0; r < count; ++r) {
      const int g = r * kRowGroups;
      const GroupRule rules[kRowGroups] = {
          {batch.steps[g], batch.zeros[g], batch.factors[g]},
          {batch.steps[g + 1], batch.zeros[g + 1], batch.factors[g + 1]}};
      RegisterRow rest;
      StoreI4tCodes(rules, batch.rows[r], Codes(first + r), &rest);
      StoreLanes(SquareLanes(rest), batch.error_lanes[r]);
    }
  }

  // Codes that are levels of the row at unit variance.
  template <CodecId kCodec>
  HWY_INLINE void CodeLevels(int64_t first, int count, EncodeBatch& batch) const {
    const RowTag d;
    const float* lengths = batch.norms;
    if (UsesRopeMean(row_)) {
      for (int r = 0; r < count; r += 4) StoreTreeSums(batch.lanes[r], batch.lengths + r);
      lengths = batch.lengths;
    }
    for (int r = 0; r < kBatchRows; r += kPartLanes) {
      const auto squared = hn::Load(d, lengths + r);
      const auto unit = hn::Sqrt(hn::Set(d, static_cast<float>(kRegisterDim)));
      const auto factor = hn::Div(unit, hn::Sqrt(squared));
      hn::Store(hn::IfThenElseZero(hn::Gt(squared, hn::Zero(d)), factor), d, batch.factors + r);
    }
    if constexpr (kCodec != CodecId::kLm4) SearchVectors<kCodec>(first, count, lengths, batch);
    for (int r = 0; r < count; ++r) FindLevels<kCodec>(first + r, r, batch);
    for (int r = 0; r < count; r += 4) StoreTreeSums(batch.lanes[r], batch.sums + r);
    for (int r = 0; r < kBatchRows; r += kPartLanes) {
      const auto scale = LevelScale<kCodec>(hn::Load(d, lengths + r), hn::Load(d, batch.sums + r));
      hn::Store(scale, d, batch.steps + r);
    }
    RoundScales<kBatchRows>(batch.steps, count, Scales(first));
    for (int r = 0; r < count; ++r) {
      RegisterRow rest;
      LeaveOver(batch.steps[r], batch.rows[r], batch.levels[r], &rest);
      StoreLanes(SquareLanes(rest), batch.error_lanes[r]);
    }
  }

  // `squared` is the squared length, `sum` that of the levels or, for sfv2, their product with the
  // row. A row without length has no scale.
  template <CodecId kCodec>
  static HWY_INLINE hn::Vec<RowTag> LevelScale(hn::Vec<RowTag> squared, hn::Vec<RowTag> sum) {
    const RowTag d;
    const auto length = hn::Sqrt(squared);
    if constexpr (kCodec == CodecId::kSfv2) {
      const auto unit = hn::Sqrt(hn::Set(d, static_cast<float>(kRegisterDim)));
      const auto fine = hn::And(hn::Gt(squared, hn::Zero(d)), hn::Gt(sum, hn::Zero(d)));
      return hn::IfThenElseZero(fine, hn::Div(hn::Mul(length, unit), sum));
    } else {
      return hn::IfThenElseZero(hn::Gt(squared, hn::Zero(d)), hn::Div(length, hn::Sqrt(sum)));
    }
  }

  // Codes and signs of rows that have a length, and halves.
  template <CodecId kCodec>
  HWY_INLINE void SearchVectors(int64_t first, int count, const float* lengths,
                                EncodeBatch& batch) const {
    for (int r = 0; r < count; ++r) {
      if (!(batch.factors[r] > 0.0f)) {
        std::memset(batch.halves[r], 0, sizeof(batch.halves[r]));
        continue;
      }
      StartSearch(batch.factors[r], batch.rows[r], &batch.search);
      if constexpr (kCodec == CodecId::kSfv2) {
        FindSfv2(&batch.search, Codes(first + r), batch.halves[r]);
      } else {
        FindSfv3(lengths[r], &batch.search, Codes(first + r), batch.halves[r]);
        std::memcpy(packed_ + planes_.signs + (first + r) * planes_.sign_row_bytes,
                    batch.search.signs, kSignBytes);
      }
    }
  }

  // Levels of row r and the lanes of their sum.
  template <CodecId kCodec>
  HWY_INLINE void FindLevels(int64_t token, int r, EncodeBatch& batch) const {
    RegisterRow levels;
    LaneSums sum;
    if constexpr (kCodec == CodecId::kLm4) {
      FindLm4Levels(batch.factors[r], batch.rows[r], Codes(token), &levels);
      sum = SquareLanes(levels);
    } else {
      for (int p = 0; p < kLaneParts; ++p) sum.part[p] = hn::Zero(RowTag());
      const auto step = [&](int p, hn::Vec<RowTag> value, hn::Vec<RowTag> level) HWY_ATTR {
        levels.part[p] = level;
        hn::Vec<RowTag>& lanes = sum.part[p % kLaneParts];
        lanes = hn::MulAdd(level, kCodec == CodecId::kSfv2 ? value : level, lanes);
      };
      ForEachLevel(batch.factors[r], batch.rows[r], batch.halves[r], step);
    }
    StoreLanes(sum, batch.lanes[r]);
    StoreParts(levels, batch.levels[r]);
  }

  const PackedRow& row_;
  const PackedPlanes& planes_;
  std::byte* const packed_;
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
