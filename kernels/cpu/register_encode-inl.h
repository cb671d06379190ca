// Encoding a block of a packed table, a head of 128 at a time in registers; what a whole row has to
// be known for waits until a batch of rows is there.
#if defined(KVERN_KERNELS_CPU_REGISTER_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_REGISTER_ENCODE_INL_H_
#undef KVERN_KERNELS_CPU_REGISTER_ENCODE_INL_H_
#else
#define KVERN_KERNELS_CPU_REGISTER_ENCODE_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/backend.h"
#include "kernels/base/coding.h"
#include "kernels/cpu/coding_order.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/lm4-inl.h"
#include "kernels/cpu/register_codes-inl.h"
#include "kernels/cpu/register_row-inl.h"
#include "kernels/cpu/rotation-inl.h"
#include "kernels/cpu/sanitise-inl.h"
#include "kernels/cpu/token_walk.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Divisions, square roots and the ends of sums then fill registers, and no row waits for its own.
inline constexpr int kBatchRows = 16;

struct EncodeBatch {
  RegisterHadamard hadamard;
  alignas(64) float rows[kBatchRows][kRegisterDim];    // what is coded
  alignas(64) float levels[kBatchRows][kRegisterDim];  // of lm4
  alignas(64) float mean[kRegisterDim];                // un-rotated
  alignas(64) float turned[2][kRegisterDim];           // a pair's means at their angles
  alignas(64) float spoilt[kRegisterDim];              // a row to sanitise
  alignas(64) float norm_lanes[kBatchRows][kLanes];
  alignas(64) float error_lanes[kBatchRows][kLanes];
  alignas(64) float lanes[kBatchRows][kLanes];  // squared lengths, or largest magnitudes
  alignas(64) float lengths[kBatchRows];        // the same, one number per row
  alignas(64) float level_lengths[kBatchRows];
  alignas(64) float factors[kBatchRows];  // what a row is multiplied by before it is rounded
  alignas(64) float steps[kBatchRows];    // scales, rounded
  alignas(64) float norms[kBatchRows];
  alignas(64) float errors[kBatchRows];
};

template <class T>
class RegisterEncoder {
 public:
  RegisterEncoder(const EncodeArgs& args, const CodingItem& item, EncodeBatch& batch)
      : args_(args),
        row_(item.row),
        next_(SoundNext(args, item)),
        next_is_new_(next_ != nullptr && item.NextIsNew()),
        keys_(args.rows[row_.layer]),
        planes_(PlanesOf(row_, keys_)),
        source_(SourceOf(args, row_)),
        batch_(batch) {
    if (UsesHadamard(row_)) LoadHadamard(&batch.hadamard);
    if (UsesRopeMean(row_)) LoadMean(args.mean_key, row_, batch.mean);
  }

  EncodeCounts Encode() {
    FindRows();
    for (int64_t first = 0; first < row_.tokens; first += kBatchRows) {
      const int count = static_cast<int>(std::min<int64_t>(kBatchRows, row_.tokens - first));
      StageBatch(first, count);
      for (int r = 0; r < count; r += 4) StoreTreeSums(batch_.norm_lanes[r], batch_.norms + r);
      if (static_cast<CodecId>(row_.codec) == CodecId::kI8t) {
        CodeI8(first, count);
      } else {
        CodeLm4(first, count);
      }
      AddCounts(count);
    }
    for (int64_t token = 0; token < row_.tokens; ++token) counts_.nonfinite += nonfinite_[token];
    return counts_;
  }

 private:
  static const int32_t* SourceOf(const EncodeArgs& args, const PackedRow& row) {
    return args.keep->Row(row.layer, row.kv_head) + row.first_slot;
  }

  static const PackedRow* SoundNext(const EncodeArgs& args, const CodingItem& item) {
    const PackedRow* next = item.next;
    if (next == nullptr || next->layer != item.row.layer) return nullptr;
    if (!IsSound(*next, args.rows, std::ssize(args.packed))) return nullptr;
    return SlotsEndBy(*next, args.keep->Count(next->layer, next->kv_head)) ? next : nullptr;
  }

  // Where the tokens lie, and after them those that are read next.
  void FindRows() {
    TokenWalk walk(keys_, row_.kv_head);
    for (int64_t token = 0; token < row_.tokens; ++token) {
      from_[token] = walk.Address(source_[token]);
    }
    std::fill_n(from_ + row_.tokens, kBatchRows, from_[row_.tokens - 1]);
    if (next_ == nullptr) return;
    TokenWalk next_walk(keys_, next_->kv_head);
    const int32_t* source = SourceOf(args_, *next_);
    for (int64_t token = 0; token < std::min<int64_t>(kBatchRows, next_->tokens); ++token) {
      from_[row_.tokens + token] = next_walk.Address(source[token]);
    }
  }

  void StageBatch(int64_t first, int count) {
    if (!UsesRopeMean(row_)) {
      Stage<MeanKind::kNone>(first, count);
    } else if (TurnsHalves(*args_.rotation)) {
      Stage<MeanKind::kHalves>(first, count);
    } else {
      Stage<MeanKind::kAny>(first, count);
    }
  }
  template <MeanKind kMean>
  void Stage(int64_t first, int count) {
    UsesHadamard(row_) ? Stage<kMean, true>(first, count) : Stage<kMean, false>(first, count);
  }
  bool IsI8() const { return static_cast<CodecId>(row_.codec) == CodecId::kI8t; }
  std::byte* Codes(int64_t token) const {
    return args_.packed.data() + planes_.codes + token * planes_.code_row_bytes;
  }

  // Rows of the batch as they will be coded, and what has to be known of them. Of an odd number the
  // last row is done twice.
  template <MeanKind kMean, bool kRotate>
  HWY_NOINLINE void Stage(int64_t first, int count) {
    for (int r = 0; r < count; r += 2) {
      const int64_t a = first + r;
      const int64_t b = r + 1 < count ? a + 1 : a;
      if constexpr (kMean == MeanKind::kAny) {
        TurnMean(a, batch_.turned[0]);
        TurnMean(b, batch_.turned[1]);
      }
      RegisterPair pair;
      LoadRow(a, r, &pair.a);
      LoadRow(b, r + static_cast<int>(b - a), &pair.b);
      if constexpr (kMean != MeanKind::kNone) {
        SubtractMean<kMean>(a, batch_.turned[0], &pair.a);
        SubtractMean<kMean>(b, batch_.turned[1], &pair.b);
        if (!IsI8()) {
          StoreLanes(SquareLanes(pair.a), batch_.lanes[r]);
          StoreLanes(SquareLanes(pair.b), batch_.lanes[r + 1]);
        }
      }
      if constexpr (kRotate) HadamardParts(batch_.hadamard, &pair);
      if (IsI8()) {
        StoreLargestLanes(pair.a, batch_.lanes[r]);
        StoreLargestLanes(pair.b, batch_.lanes[r + 1]);
      }
      StoreParts(pair.a, batch_.rows[r]);
      StoreParts(pair.b, batch_.rows[r + 1]);
    }
  }

  // `token` as row r of the batch.
  HWY_INLINE void LoadRow(int64_t token, int r, RegisterRow* row) {
    PrefetchBytes<kRegisterDim * sizeof(T)>(from_[token + kBatchRows]);
    const T* from = reinterpret_cast<const T*>(from_[token]);
    LoadParts(from, row);
    LaneSums squares = SquareLanes(*row);
    if (HWY_UNLIKELY(!AllCodable(squares))) {
      LoadContiguous(from, kRegisterDim, batch_.spoilt);
      nonfinite_[token] = static_cast<int32_t>(Sanitise(batch_.spoilt, kRegisterDim));
      LoadParts(batch_.spoilt, row);
      squares = SquareLanes(*row);
    }
    StoreLanes(squares, batch_.norm_lanes[r]);
  }

  int64_t AngleOf(int64_t token) const {
    return args_.rotation->Row(row_.layer, row_.kv_head, source_[token]);
  }
  // `turned` is used where there is no quicker way to it.
  template <MeanKind kMean>
  HWY_INLINE void SubtractMean(int64_t token, const float* HWY_RESTRICT turned, RegisterRow* row) {
    if constexpr (kMean == MeanKind::kHalves) {
      const HalfAngles angles = HalfAnglesOf(*args_.rotation, AngleOf(token));
      if (next_is_new_ && token < next_->tokens) PrefetchNextAngles(token);
      ApplyTurnedMean<MeanUse::kSubtract>(angles, batch_.mean, row);
    } else {
      ApplyMean<MeanUse::kSubtract>(turned, row);
    }
  }
  HWY_INLINE void PrefetchNextAngles(int64_t token) const {
    const int64_t slot = SourceOf(args_, *next_)[token];
    const int64_t angle = args_.rotation->Row(next_->layer, next_->kv_head, slot);
    PrefetchAngles(HalfAnglesOf(*args_.rotation, angle));
  }
  HWY_NOINLINE void TurnMean(int64_t token, float* turned) {
    std::copy_n(batch_.mean, kRegisterDim, turned);
    TurnRow<Turn::kRotate>(RowOf(*args_.rotation, AngleOf(token)), turned);
  }

  // steps = scales [count] of the batch, rounded and used rounded as by RoundScale.
  HWY_INLINE void RoundScales(int64_t first, int count) {
    const RowTag d;
    const hn::Rebind<hwy::float16_t, RowTag> narrow;
    HWY_ALIGN hwy::float16_t stored[kBatchRows];
    for (int r = 0; r < kBatchRows; r += kPartLanes) {
      const auto scale = hn::Min(hn::Load(d, batch_.steps + r), hn::Set(d, kLargestCoded));
      const auto rounded = hn::DemoteTo(narrow, scale);
      hn::Store(rounded, narrow, stored + r);
      hn::Store(hn::PromoteTo(d, rounded), d, batch_.steps + r);
    }
    std::memcpy(args_.packed.data() + planes_.scales + first * sizeof(Float16), stored,
                count * sizeof(Float16));
  }

  HWY_INLINE void CodeI8(int64_t first, int count) {
    const RowTag d;
    for (int r = 0; r < count; r += 4) StoreTreeMaxima(batch_.lanes[r], batch_.lengths + r);
    for (int r = 0; r < kBatchRows; r += kPartLanes) {
      const auto largest = hn::Load(d, batch_.lengths + r);
      hn::Store(hn::Div(largest, hn::Set(d, kI8Levels)), d, batch_.steps + r);
    }
    RoundScales(first, count);
    for (int r = 0; r < kBatchRows; r += kPartLanes) {
      const auto step = hn::Load(d, batch_.steps + r);
      const auto inverse = hn::Div(hn::Set(d, 1.0f), step);
      hn::Store(hn::IfThenElseZero(hn::Gt(step, hn::Zero(d)), inverse), d, batch_.factors + r);
    }
    for (int r = 0; r < count; ++r) {
      const I8Rule rule = {batch_.factors[r], batch_.steps[r]};
      auto* codes = reinterpret_cast<int8_t*>(Codes(first + r));
      RegisterRow row;
      // The step of a normal scale is near enough to a 127th of the largest for none to be above.
      if (HWY_LIKELY(!(rule.step < kSmallestNormalF16))) {
        StoreI8Codes<CodeRange::kKnown>(rule, batch_.rows[r], codes, &row);
      } else {
        StoreI8Codes<CodeRange::kClamped>(rule, batch_.rows[r], codes, &row);
      }
      StoreLanes(SquareLanes(row), batch_.error_lanes[r]);
    }
  }

  HWY_INLINE void CodeLm4(int64_t first, int count) {
    const RowTag d;
    const float* lengths = batch_.norms;
    if (UsesRopeMean(row_)) {
      for (int r = 0; r < count; r += 4) StoreTreeSums(batch_.lanes[r], batch_.lengths + r);
      lengths = batch_.lengths;
    }
    for (int r = 0; r < kBatchRows; r += kPartLanes) {
      const auto squared = hn::Load(d, lengths + r);
      const auto unit = hn::Sqrt(hn::Set(d, static_cast<float>(kRegisterDim)));
      const auto factor = hn::Div(unit, hn::Sqrt(squared));
      hn::Store(hn::IfThenElseZero(hn::Gt(squared, hn::Zero(d)), factor), d, batch_.factors + r);
    }
    for (int r = 0; r < count; ++r) {
      RegisterRow levels;
      FindLm4Levels(batch_.factors[r], batch_.rows[r], Codes(first + r), &levels);
      StoreLanes(SquareLanes(levels), batch_.lanes[r]);
      StoreParts(levels, batch_.levels[r]);
    }
    for (int r = 0; r < count; r += 4) StoreTreeSums(batch_.lanes[r], batch_.level_lengths + r);
    for (int r = 0; r < kBatchRows; r += kPartLanes) {
      const auto squared = hn::Load(d, lengths + r);
      const auto of_levels = hn::Load(d, batch_.level_lengths + r);
      const auto scale = hn::Div(hn::Sqrt(squared), hn::Sqrt(of_levels));
      // A row without length has no scale.
      hn::Store(hn::IfThenElseZero(hn::Gt(squared, hn::Zero(d)), scale), d, batch_.steps + r);
    }
    RoundScales(first, count);
    for (int r = 0; r < count; ++r) {
      RegisterRow row;
      LeaveOver(batch_.steps[r], batch_.rows[r], batch_.levels[r], &row);
      StoreLanes(SquareLanes(row), batch_.error_lanes[r]);
    }
  }

  // In token order.
  HWY_INLINE void AddCounts(int count) {
    for (int r = 0; r < count; r += 4) {
      StoreTreeSums(batch_.error_lanes[r], batch_.errors + r);
    }
    for (int r = 0; r < count; ++r) {
      counts_.squared_norm += batch_.norms[r];
      counts_.squared_error += batch_.errors[r];
    }
  }

  const EncodeArgs& args_;
  const PackedRow& row_;
  const PackedRow* const next_;  // of the same layer
  const bool next_is_new_;
  const KvRef& keys_;
  const PackedPlanes planes_;
  const int32_t* const source_;
  EncodeBatch& batch_;
  EncodeCounts counts_;
  const std::byte* from_[kPackedBlockTokens + kBatchRows];
  int32_t nonfinite_[kPackedBlockTokens] = {};  // of each token
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_REGISTER_ENCODE_INL_H_
