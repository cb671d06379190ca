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
  alignas(64) float rows[kBatchRows][kRegisterDim];    // what is coded
  alignas(64) float levels[kBatchRows][kRegisterDim];  // of lm4
  alignas(64) float mean[kRegisterDim];                // un-rotated
  alignas(64) float turned[kRegisterDim];              // a mean at its angles, or a spoilt row
  alignas(64) double norm_lanes[kBatchRows][kLanes];
  alignas(64) double error_lanes[kBatchRows][kLanes];
  alignas(64) float lanes[kBatchRows][kLanes];  // squared lengths, or largest magnitudes
  alignas(64) float lengths[kBatchRows];        // the same, one number per row
  alignas(64) float level_lengths[kBatchRows];
  alignas(64) float factors[kBatchRows];  // what a row is multiplied by before it is rounded
  alignas(64) float steps[kBatchRows];    // scales, rounded
  alignas(64) double norms[kBatchRows];
  alignas(64) double errors[kBatchRows];
};

template <class T>
class RegisterEncoder {
 public:
  RegisterEncoder(const EncodeArgs& args, const PackedRow& row, EncodeBatch& batch)
      : args_(args),
        row_(row),
        keys_(args.rows[row.layer]),
        planes_(PlanesOf(row, keys_)),
        hadamard_(HadamardOf(kRegisterDim)),
        batch_(batch) {
    if (!UsesRopeMean(row)) return;
    for (int64_t d = 0; d < kRegisterDim; ++d) {
      batch.mean[d] = FiniteMean(args.mean_key(row.layer, row.kv_head, d));
    }
  }

  EncodeCounts Encode() {
    const int32_t* source = args_.keep->Row(row_.layer, row_.kv_head) + row_.first_slot;
    TokenWalk walk(keys_, row_.kv_head);
    for (int64_t token = 0; token < row_.tokens; ++token)
      from_[token] = walk.Address(source[token]);
    for (int64_t first = 0; first < row_.tokens; first += kBatchRows) {
      const int count = static_cast<int>(std::min<int64_t>(kBatchRows, row_.tokens - first));
      for (int r = 0; r < count; ++r) Stage(first + r, source[first + r], r);
      if (static_cast<CodecId>(row_.codec) == CodecId::kI8t) {
        CodeI8(first, count);
      } else {
        CodeLm4(first, count);
      }
      AddCounts(count);
    }
    return counts_;
  }

 private:
  bool IsI8() const { return static_cast<CodecId>(row_.codec) == CodecId::kI8t; }
  std::byte* Codes(int64_t token) const {
    return args_.packed.data() + planes_.codes + token * planes_.code_row_bytes;
  }

  // Rows of the batch as they will be coded, and what has to be known of them.
  HWY_INLINE void Stage(int64_t token, int64_t slot, int r) {
    if (token + kRowsAhead < row_.tokens) PrefetchRow(keys_, from_[token + kRowsAhead]);
    const T* from = reinterpret_cast<const T*>(from_[token]);
    RegisterRow row;
    if (HWY_LIKELY(AllCodable(from))) {
      LoadParts(from, &row);
    } else {
      LoadContiguous(from, kRegisterDim, batch_.turned);
      counts_.nonfinite += Sanitise(batch_.turned, kRegisterDim);
      LoadParts(batch_.turned, &row);
    }
    StoreSquareLanes(row, batch_.norm_lanes[r]);
    if (UsesRopeMean(row_)) SubtractMean(slot, &row);
    if (!IsI8()) StoreSquareLanes(row, batch_.lanes[r]);
    if (UsesHadamard(row_)) HadamardParts(hadamard_, &row);
    if (IsI8()) StoreLargestLanes(row, batch_.lanes[r]);
    StoreParts(row, batch_.rows[r]);
  }

  HWY_INLINE void SubtractMean(int64_t slot, RegisterRow* row) {
    const RotationTable& table = *args_.rotation;
    const RotationRow angles = RowOf(table, table.Row(row_.layer, row_.kv_head, slot));
    if (HWY_LIKELY(TurnsHalves(angles))) {
      ApplyTurnedMean<MeanUse::kSubtract>(angles, batch_.mean, row);
      return;
    }
    std::copy_n(batch_.mean, kRegisterDim, batch_.turned);
    TurnRow<Turn::kRotate>(angles, batch_.turned);
    ApplyMean<MeanUse::kSubtract>(batch_.turned, row);
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
      StoreSquareLanes(row, batch_.error_lanes[r]);
    }
  }

  HWY_INLINE void CodeLm4(int64_t first, int count) {
    const RowTag d;
    for (int r = 0; r < count; r += 4) StoreTreeSums(batch_.lanes[r], batch_.lengths + r);
    for (int r = 0; r < kBatchRows; r += kPartLanes) {
      const auto squared = hn::Load(d, batch_.lengths + r);
      const auto unit = hn::Sqrt(hn::Set(d, static_cast<float>(kRegisterDim)));
      const auto factor = hn::Div(unit, hn::Sqrt(squared));
      hn::Store(hn::IfThenElseZero(hn::Gt(squared, hn::Zero(d)), factor), d, batch_.factors + r);
    }
    for (int r = 0; r < count; ++r) {
      RegisterRow levels;
      FindLm4Levels(batch_.factors[r], batch_.rows[r], Codes(first + r), &levels);
      StoreSquareLanes(levels, batch_.lanes[r]);
      StoreParts(levels, batch_.levels[r]);
    }
    for (int r = 0; r < count; r += 4) StoreTreeSums(batch_.lanes[r], batch_.level_lengths + r);
    for (int r = 0; r < kBatchRows; r += kPartLanes) {
      const auto squared = hn::Load(d, batch_.lengths + r);
      const auto of_levels = hn::Load(d, batch_.level_lengths + r);
      const auto scale = hn::Div(hn::Sqrt(squared), hn::Sqrt(of_levels));
      // A row without length has no scale.
      hn::Store(hn::IfThenElseZero(hn::Gt(squared, hn::Zero(d)), scale), d, batch_.steps + r);
    }
    RoundScales(first, count);
    for (int r = 0; r < count; ++r) {
      RegisterRow row;
      LeaveOver(batch_.steps[r], batch_.rows[r], batch_.levels[r], &row);
      StoreSquareLanes(row, batch_.error_lanes[r]);
    }
  }

  // In token order.
  HWY_INLINE void AddCounts(int count) {
    for (int r = 0; r < count; r += 4) {
      StoreTreeSums(batch_.norm_lanes[r], batch_.norms + r);
      StoreTreeSums(batch_.error_lanes[r], batch_.errors + r);
    }
    for (int r = 0; r < count; ++r) {
      counts_.squared_norm += batch_.norms[r];
      counts_.squared_error += batch_.errors[r];
    }
  }

  const EncodeArgs& args_;
  const PackedRow& row_;
  const KvRef& keys_;
  const PackedPlanes planes_;
  const Hadamard& hadamard_;
  EncodeBatch& batch_;
  EncodeCounts counts_;
  const std::byte* from_[kPackedBlockTokens];
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_REGISTER_ENCODE_INL_H_
