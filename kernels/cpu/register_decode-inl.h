// Decoding a block of a packed table, two heads of 128 at a time in registers.
#if defined(KVERN_KERNELS_CPU_REGISTER_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_REGISTER_DECODE_INL_H_
#undef KVERN_KERNELS_CPU_REGISTER_DECODE_INL_H_
#else
#define KVERN_KERNELS_CPU_REGISTER_DECODE_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/backend.h"
#include "kernels/base/coding.h"
#include "kernels/cpu/coding_order.h"
#include "kernels/cpu/register_codes-inl.h"
#include "kernels/cpu/register_row-inl.h"
#include "kernels/cpu/rotation-inl.h"
#include "kernels/cpu/token_walk.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

struct DecodeRows {
  RegisterHadamard hadamard;
  alignas(64) float mean[kRegisterDim];       // un-rotated
  alignas(64) float turned[2][kRegisterDim];  // a pair's means at their angles
};

// Every scale of the row is a number: what is decoded then is one too.
inline bool HasFiniteScales(std::span<const std::byte> packed, const PackedRow& row,
                            const PackedPlanes& planes) {
  constexpr uint16_t kExponent = 0x7C00;
  bool finite = true;
  for (int64_t token = 0; token < row.tokens; ++token) {
    uint16_t bits;
    std::memcpy(&bits, packed.data() + planes.scales + token * sizeof(bits), sizeof(bits));
    finite = finite && (bits & kExponent) != kExponent;
  }
  return finite;
}

// For rows with finite scales.
template <class T>
class RegisterDecoder {
 public:
  RegisterDecoder(const DecodeArgs& args, const CodingItem& item, DecodeRows& rows)
      : args_(args),
        row_(item.row),
        next_(SoundNext(args, item)),
        next_is_new_(next_ != nullptr && item.NextIsNew()),
        planes_(PlanesOf(row_, args.rows[row_.layer])),
        next_planes_(PlanesOf(next_ == nullptr ? row_ : *next_, args.rows[row_.layer])),
        walk_(args.rows[row_.layer], row_.kv_head),
        rows_(rows) {
    if (UsesHadamard(row_)) LoadHadamard(&rows.hadamard);
    if (UsesRopeMean(row_)) LoadMean(args.mean_key, row_, rows.mean);
  }

  void Decode() {
    if (!UsesRopeMean(row_)) {
      DecodeAll<MeanKind::kNone>();
    } else if (TurnsHalves(*args_.rotation)) {
      DecodeAll<MeanKind::kHalves>();
    } else {
      DecodeAll<MeanKind::kAny>();
    }
    hwy::FlushStream();
  }

 private:
  template <MeanKind kMean>
  void DecodeAll() {
    if (static_cast<CodecId>(row_.codec) == CodecId::kLm4) {
      DecodeAll<kMean, CodecId::kLm4, true>();
    } else if (UsesHadamard(row_)) {
      DecodeAll<kMean, CodecId::kI8t, true>();
    } else {
      DecodeAll<kMean, CodecId::kI8t, false>();
    }
  }

  // Of an odd number the last row is done twice.
  template <MeanKind kMean, CodecId kCodec, bool kRotate>
  HWY_NOINLINE void DecodeAll() {
    for (int64_t a = 0; a < row_.tokens; a += 2) {
      const int64_t b = std::min(a + 1, row_.tokens - 1);
      if constexpr (kMean == MeanKind::kAny) {
        TurnMean(a, rows_.turned[0]);
        TurnMean(b, rows_.turned[1]);
      }
      PrefetchNext<kMean, kCodec>(a);
      PrefetchNext<kMean, kCodec>(b);
      RegisterPair pair;
      Restore<kCodec>(a, &pair.a);
      Restore<kCodec>(b, &pair.b);
      if constexpr (kRotate) InverseHadamardParts(rows_.hadamard, &pair);
      if constexpr (kMean != MeanKind::kNone) {
        AddMean<kMean>(a, rows_.turned[0], &pair.a);
        AddMean<kMean>(b, rows_.turned[1], &pair.b);
      }
      StoreRegisters(pair.a, reinterpret_cast<T*>(walk_.Address(row_.first_slot + a)));
      StoreRegisters(pair.b, reinterpret_cast<T*>(walk_.Address(row_.first_slot + b)));
    }
  }

  static const PackedRow* SoundNext(const DecodeArgs& args, const CodingItem& item) {
    const PackedRow* next = item.next;
    if (next == nullptr || next->layer != item.row.layer) return nullptr;
    if (!IsSound(*next, args.rows, std::ssize(args.packed))) return nullptr;
    return SlotsEndBy(*next, args.rows[next->layer].tokens) ? next : nullptr;
  }

  // What the next row has at the place of `token`.
  template <MeanKind kMean, CodecId kCodec>
  HWY_INLINE void PrefetchNext(int64_t token) const {
    constexpr size_t kCodeBytes = kCodec == CodecId::kLm4 ? kRegisterDim / 2 : kRegisterDim;
    if (next_ == nullptr || token >= next_->tokens) return;
    const std::byte* codes = args_.packed.data() + next_planes_.codes;
    PrefetchBytes<kCodeBytes>(codes + token * next_planes_.code_row_bytes);
    if constexpr (kMean == MeanKind::kHalves) {
      if (!next_is_new_) return;
      const int64_t slot = next_->first_slot + token;
      const int64_t angle = args_.rotation->Row(next_->layer, next_->kv_head, slot);
      PrefetchAngles(HalfAnglesOf(*args_.rotation, angle));
    }
  }

  // The row in the space that was coded.
  template <CodecId kCodec>
  HWY_INLINE void Restore(int64_t token, RegisterRow* row) const {
    const std::byte* codes = args_.packed.data() + planes_.codes + token * planes_.code_row_bytes;
    Float16 stored;
    std::memcpy(&stored, args_.packed.data() + planes_.scales + token * sizeof(stored),
                sizeof(stored));
    const float scale = ToFloat(stored);
    if constexpr (kCodec == CodecId::kI8t) {
      LoadI8Codes(scale, reinterpret_cast<const int8_t*>(codes), row);
    } else {
      LoadLm4Codes(scale, codes, row);
    }
  }

  int64_t AngleOf(int64_t token) const {
    return args_.rotation->Row(row_.layer, row_.kv_head, row_.first_slot + token);
  }
  template <MeanKind kMean>
  HWY_INLINE void AddMean(int64_t token, const float* HWY_RESTRICT turned, RegisterRow* row) const {
    if constexpr (kMean == MeanKind::kHalves) {
      const HalfAngles angles = HalfAnglesOf(*args_.rotation, AngleOf(token));
      ApplyTurnedMean<MeanUse::kAdd>(angles, rows_.mean, row);
    } else {
      ApplyMean<MeanUse::kAdd>(turned, row);
    }
  }
  HWY_NOINLINE void TurnMean(int64_t token, float* turned) const {
    std::copy_n(rows_.mean, kRegisterDim, turned);
    TurnRow<Turn::kRotate>(RowOf(*args_.rotation, AngleOf(token)), turned);
  }

  const DecodeArgs& args_;
  const PackedRow& row_;
  const PackedRow* const next_;  // of the same layer
  const bool next_is_new_;
  const PackedPlanes planes_;
  const PackedPlanes next_planes_;
  TokenWalk walk_;
  DecodeRows& rows_;
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_REGISTER_DECODE_INL_H_
