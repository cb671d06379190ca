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

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/backend.h"
#include "kernels/base/coding.h"
#include "kernels/cpu/coding_order.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/register_batch-inl.h"
#include "kernels/cpu/register_row-inl.h"
#include "kernels/cpu/rotation-inl.h"
#include "kernels/cpu/sanitise-inl.h"
#include "kernels/cpu/token_walk.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// What the scales of a row come from: its length before the rotation, its largest magnitude, or
// what is lowest and highest in each group.
enum class ScaleSource : uint8_t { kLength, kLargest, kRanges };

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
        coder_(row_, planes_, args.packed.data()),
        source_(SourceOf(args, row_)),
        batch_(batch) {
    if (UsesHadamard(row_)) LoadHadamard(&batch.hadamard);
    if (UsesRopeMean(row_)) LoadMean(args.mean_key, row_, batch.mean);
  }

  EncodeCounts Encode() {
    FindRows();
    if (NeedsFullBlock(static_cast<CodecId>(row_.codec))) {
      EncodeChannels();
    } else {
      ForEachBatch([&](int64_t first, int count) HWY_ATTR {
        StageBatch(first, count);
        AddNorms(count);
        coder_.Code(first, count, batch_);
        AddErrors(count);
      });
    }
    for (int64_t token = 0; token < row_.tokens; ++token) counts_.nonfinite += nonfinite_[token];
    hwy::FlushStream();
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
    const auto codec = static_cast<CodecId>(row_.codec);
    if (AlwaysRotates(codec)) {
      Stage<kMean, ScaleSource::kLength, true>(first, count);
    } else if (codec == CodecId::kI4t) {
      StageEither<kMean, ScaleSource::kRanges>(first, count);
    } else {
      StageEither<kMean, ScaleSource::kLargest>(first, count);
    }
  }
  template <MeanKind kMean, ScaleSource kSource>
  void StageEither(int64_t first, int count) {
    UsesHadamard(row_) ? Stage<kMean, kSource, true>(first, count)
                       : Stage<kMean, kSource, false>(first, count);
  }

  // Rows of the batch as they will be coded, and what has to be known of them. Of an odd number the
  // last row is done twice.
  template <MeanKind kMean, ScaleSource kSource, bool kRotate>
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
        if constexpr (kSource == ScaleSource::kLength) {
          StoreLanes(SquareLanes(pair.a), batch_.lanes[r]);
          StoreLanes(SquareLanes(pair.b), batch_.lanes[r + 1]);
        }
      }
      if constexpr (kRotate) HadamardParts(batch_.hadamard, &pair);
      StoreRanges<kSource>(r, pair.a);
      StoreRanges<kSource>(r + 1, pair.b);
      StoreParts(pair.a, batch_.rows[r]);
      StoreParts(pair.b, batch_.rows[r + 1]);
    }
  }

  template <ScaleSource kSource>
  HWY_INLINE void StoreRanges(int r, const RegisterRow& row) {
    if constexpr (kSource == ScaleSource::kLargest) StoreLargestLanes(row, batch_.lanes[r]);
    if constexpr (kSource == ScaleSource::kRanges) {
      HWY_UNROLL(2)
      for (int group = 0; group < kRowGroups; ++group) {
        const int g = r * kRowGroups + group;
        StoreRangeLanes(row, group, batch_.low_lanes[g], batch_.lanes[g]);
      }
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

  // kch4: what a channel's scale is, all tokens say; their rows are read twice.
  HWY_NOINLINE void EncodeChannels() {
    RegisterRow lowest, highest;
    LoadRow(0, 0, &lowest);
    highest = lowest;
    ForEachBatch([&](int64_t first, int count) HWY_ATTR {
      for (int r = 0; r < count; ++r) {
        RegisterRow row;
        LoadRow(first + r, r, &row);
        HWY_UNROLL(16)
        for (int p = 0; p < kParts; ++p) {
          lowest.part[p] = hn::Min(lowest.part[p], row.part[p]);
          highest.part[p] = hn::Max(highest.part[p], row.part[p]);
        }
      }
      AddNorms(count);
    });
    StoreParts(lowest, batch_.channels.zeros);
    StoreParts(highest, batch_.channels.scales);
    coder_.SetChannels(batch_);
    ForEachBatch([&](int64_t first, int count) HWY_ATTR {
      for (int r = 0; r < count; ++r) {
        RegisterRow row;
        LoadRow(first + r, r, &row);
        StoreParts(row, batch_.rows[r]);
      }
      coder_.CodeChannels(first, count, batch_);
      AddErrors(count);
    });
  }

  template <class Visit>
  HWY_INLINE void ForEachBatch(const Visit& visit) {
    for (int64_t first = 0; first < row_.tokens; first += kBatchRows) {
      visit(first, static_cast<int>(std::min<int64_t>(kBatchRows, row_.tokens - first)));
    }
  }

  // In token order.
  HWY_INLINE void AddNorms(int count) {
    for (int r = 0; r < count; r += 4) StoreTreeSums(batch_.norm_lanes[r], batch_.norms + r);
    for (int r = 0; r < count; ++r) counts_.squared_norm += batch_.norms[r];
  }
  HWY_INLINE void AddErrors(int count) {
    for (int r = 0; r < count; r += 4) StoreTreeSums(batch_.error_lanes[r], batch_.errors + r);
    for (int r = 0; r < count; ++r) counts_.squared_error += batch_.errors[r];
  }

  const EncodeArgs& args_;
  const PackedRow& row_;
  const PackedRow* const next_;  // of the same layer
  const bool next_is_new_;
  const KvRef& keys_;
  const PackedPlanes planes_;
  const BatchCoder coder_;
  const int32_t* const source_;
  EncodeBatch& batch_;
  EncodeCounts counts_;
  const std::byte* from_[kPackedBlockTokens + kBatchRows];
  int32_t nonfinite_[kPackedBlockTokens] = {};  // of each token
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_REGISTER_ENCODE_INL_H_
