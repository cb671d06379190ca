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
#include <span>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/backend.h"
#include "kernels/base/coding.h"
#include "kernels/cpu/coding_order.h"
#include "kernels/cpu/register_affine-inl.h"
#include "kernels/cpu/register_codes-inl.h"
#include "kernels/cpu/register_row-inl.h"
#include "kernels/cpu/register_sfv-inl.h"
#include "kernels/cpu/rotation-inl.h"
#include "kernels/cpu/token_walk.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

struct DecodeRows {
  RegisterHadamard hadamard;
  ChannelRules channels;                                        // of kch4, without inverses
  alignas(64) uint64_t halves[kPackedBlockTokens][kSfvBlocks];  // levels of sfv
  alignas(64) float mean[kRegisterDim];                         // un-rotated
  alignas(64) float turned[2][kRegisterDim];                    // a pair's means at their angles
};

// Every scale and zero of the row is a number: what is decoded then is one too.
inline bool HasFiniteScales(std::span<const std::byte> packed, const PackedRow& row,
                            const PackedPlanes& planes) {
  constexpr uint16_t kExponent = 0x7C00;
  const auto codec = static_cast<CodecId>(row.codec);
  const int64_t count =
      NeedsFullBlock(codec) ? kRegisterDim : row.tokens * TokenScales(codec, kRegisterDim);
  bool finite = true;
  const auto check = [&](int64_t plane) {
    for (int64_t i = 0; i < count; ++i) {
      uint16_t bits;
      std::memcpy(&bits, packed.data() + plane + i * sizeof(bits), sizeof(bits));
      finite = finite && (bits & kExponent) != kExponent;
    }
  };
  check(planes.scales);
  if (IsAffine(codec)) check(planes.zeros);
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
  // The codecs of levels are always rotated, kch4 never, and it has no mean.
  template <MeanKind kMean>
  void DecodeAll() {
    switch (static_cast<CodecId>(row_.codec)) {
      case CodecId::kLm4:
        return DecodeAll<kMean, CodecId::kLm4, true>();
      case CodecId::kSfv2:
      case CodecId::kSfv3:
        ExpandVectors();
        return DecodeAll<kMean, CodecId::kSfv3, true>();
      case CodecId::kFp8t:
        return DecodeEither<kMean, CodecId::kFp8t>();
      case CodecId::kI4t:
        return DecodeEither<kMean, CodecId::kI4t>();
      case CodecId::kKch4:
        LoadChannels();
        return DecodeAll<MeanKind::kNone, CodecId::kKch4, false>();
      default:
        return DecodeEither<kMean, CodecId::kI8t>();
    }
  }
  template <MeanKind kMean, CodecId kCodec>
  void DecodeEither() {
    UsesHadamard(row_) ? DecodeAll<kMean, kCodec, true>() : DecodeAll<kMean, kCodec, false>();
  }

  // Both codes of vectors become halves; the signs of sfv2 are part of them.
  void ExpandVectors() {
    const bool is_sfv2 = static_cast<CodecId>(row_.codec) == CodecId::kSfv2;
    const std::array<uint64_t, 256>& table = is_sfv2 ? kSfv2Signed : kSfv3Halves;
    for (int64_t token = 0; token < row_.tokens; ++token) {
      ExpandSfv(table, Codes(token), rows_.halves[token]);
    }
  }
  void LoadChannels() {
    const RowTag d;
    const auto* scales = reinterpret_cast<const Float16*>(args_.packed.data() + planes_.scales);
    const auto* zeros = reinterpret_cast<const Float16*>(args_.packed.data() + planes_.zeros);
    for (int i = 0; i < kRegisterDim; i += kPartLanes) {
      hn::Store(LoadAsFloat(d, scales + i), d, rows_.channels.scales + i);
      hn::Store(LoadAsFloat(d, zeros + i), d, rows_.channels.zeros + i);
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
    constexpr size_t kCodeBytes = CodeRowBytes(kCodec, DType::kF32, kRegisterDim);
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

  const std::byte* Codes(int64_t token) const {
    return args_.packed.data() + planes_.codes + token * planes_.code_row_bytes;
  }
  // Number i of a plane of f16.
  float HalfAt(int64_t plane, int64_t i) const {
    Float16 half;
    std::memcpy(&half, args_.packed.data() + plane + i * sizeof(half), sizeof(half));
    return ToFloat(half);
  }

  // The row in the space that was coded.
  template <CodecId kCodec>
  HWY_INLINE void Restore(int64_t token, RegisterRow* row) const {
    const std::byte* codes = Codes(token);
    if constexpr (kCodec == CodecId::kI4t) {
      float scales[kRowGroups], zeros[kRowGroups];
      for (int group = 0; group < kRowGroups; ++group) {
        scales[group] = HalfAt(planes_.scales, token * kRowGroups + group);
        zeros[group] = HalfAt(planes_.zeros, token * kRowGroups + group);
      }
      LoadI4tCodes(scales, zeros, codes, row);
    } else if constexpr (kCodec == CodecId::kKch4) {
      LoadKch4Codes(rows_.channels, codes, row);
    } else {
      const float scale = HalfAt(planes_.scales, token);
      if constexpr (kCodec == CodecId::kI8t) {
        LoadI8Codes(scale, reinterpret_cast<const int8_t*>(codes), row);
      } else if constexpr (kCodec == CodecId::kFp8t) {
        LoadFp8Codes(scale, codes, row);
      } else if constexpr (kCodec == CodecId::kSfv3) {
        LoadSfvLevels(scale, rows_.halves[token], Signs(token), row);
      } else {
        LoadLm4Codes(scale, codes, row);
      }
    }
  }
  const uint8_t* Signs(int64_t token) const {
    static constexpr uint8_t kNone[kSignBytes + kMaskRoom] = {};
    if (planes_.sign_row_bytes == 0) return kNone;
    const std::byte* signs = args_.packed.data() + planes_.signs;
    return reinterpret_cast<const uint8_t*>(signs + token * planes_.sign_row_bytes);
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
