// A head of 128 coordinates in registers: read, turned, rotated by Hadamard and written without a
// stop in memory.
#if defined(KVERN_KERNELS_CPU_REGISTER_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_REGISTER_ROW_INL_H_
#undef KVERN_KERNELS_CPU_REGISTER_ROW_INL_H_
#else
#define KVERN_KERNELS_CPU_REGISTER_ROW_INL_H_
#endif

#include <array>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/base/band_rotation.h"
#include "kernels/base/coding.h"
#include "kernels/base/dtype.h"
#include "kernels/base/hadamard.h"
#include "kernels/base/lanes.h"
#include "kernels/base/packed_layout.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cpu/kv_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kRegisterDim = 128;
inline constexpr int kPartLanes = static_cast<int>(hn::MaxLanes(RowTag()));
inline constexpr int kParts = kRegisterDim / kPartLanes;
inline constexpr int kLaneParts = kLanes / kPartLanes;  // registers that hold 16 virtual lanes

// Coordinate i lies in lane i % kPartLanes of part i / kPartLanes. A plain array: once its loops
// are unrolled, each part is a register.
struct RegisterRow {
  hn::Vec<RowTag> part[kParts];
};
// Two rows whose instructions alternate: each works while the other waits for its last result.
struct RegisterPair {
  RegisterRow a;
  RegisterRow b;
};

// Narrower registers would spill more than they save.
inline bool FitsRegisters(const KvRef& ref, const PackedRow& row) {
  const auto codec = static_cast<CodecId>(row.codec);
  const bool plain = !NeedsFullBlock(codec) || row.flags == 0;
  return codec != CodecId::kRaw16 && plain && kPartLanes >= 8 && ref.head_dim == kRegisterDim &&
         ref.HasContiguousRows();
}

template <class T>
HWY_INLINE void LoadParts(const T* from, RegisterRow* row) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) row->part[p] = LoadAsFloat(d, from + p * kPartLanes);
}
// Past the caches where `to` allows it: what is written is more than they hold, and a line that is
// written whole need not be read first. A fence has to follow (hwy::FlushStream).
template <class D>
HWY_INLINE void StorePast(D d, hn::Vec<D> value, hn::TFromD<D>* to) {
  if (HWY_LIKELY(reinterpret_cast<uintptr_t>(to) % sizeof(value) == 0)) {
    hn::Stream(value, d, to);
  } else {
    hn::StoreU(value, d, to);
  }
}

// Rows of numbers only: rounded once, those of f16 clamped as decode does.
HWY_INLINE void StoreRegisters(const RegisterRow& row, float* to) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) StorePast(d, row.part[p], to + p * kPartLanes);
}
HWY_INLINE void StoreRegisters(const RegisterRow& row, Float16* to) {
  const RowTag d;
  const auto limit = hn::Set(d, kLargestCoded);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    StoreRounded(d, hn::Clamp(row.part[p], hn::Neg(limit), limit), to + p * kPartLanes);
  }
}
// The rounded high half of each lane's bits.
HWY_INLINE hn::Vec<hn::Repartition<uint16_t, RowTag>> RoundToHighHalf(hn::Vec<RowTag> x) {
  const hn::RebindToUnsigned<RowTag> wide;
  const hn::Repartition<uint16_t, RowTag> halves;
  const auto bits = hn::BitCast(wide, x);
  const auto odd = hn::TestBit(bits, hn::Set(wide, 0x10000u));
  const auto up = hn::IfThenElse(odd, hn::Set(wide, 0x8000u), hn::Set(wide, 0x7FFFu));
  return hn::BitCast(halves, hn::Add(bits, up));
}
HWY_INLINE void StoreRegisters(const RegisterRow& row, BFloat16* to) {
  const hn::Repartition<uint16_t, RowTag> halves;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; p += 2) {
    const auto both =
        hn::ConcatOdd(halves, RoundToHighHalf(row.part[p + 1]), RoundToHighHalf(row.part[p]));
    StorePast(halves, both, reinterpret_cast<uint16_t*>(to) + p * kPartLanes);
  }
}
HWY_INLINE void StoreParts(const RegisterRow& row, float* HWY_RESTRICT to) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) hn::Store(row.part[p], d, to + p * kPartLanes);
}

// The lanes of the sum of squares (kernels/base/lanes.h).
struct LaneSums {
  hn::Vec<RowTag> part[kLaneParts];
};
HWY_INLINE LaneSums SquareLanes(const RegisterRow& row) {
  const RowTag d;
  LaneSums sum;
  for (int p = 0; p < kLaneParts; ++p) sum.part[p] = hn::Zero(d);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    hn::Vec<RowTag>& lanes = sum.part[p % kLaneParts];
    lanes = hn::MulAdd(row.part[p], row.part[p], lanes);
  }
  return sum;
}
HWY_INLINE void StoreLanes(const LaneSums& sum, float* HWY_RESTRICT lanes) {
  const RowTag d;
  for (int p = 0; p < kLaneParts; ++p) hn::Store(sum.part[p], d, lanes + p * kPartLanes);
}
// Whether a row with these sums holds neither NaN nor anything above kLargestCoded.
HWY_INLINE bool AllCodable(const LaneSums& squares) {
  const RowTag d;
  const auto limit = hn::Set(d, kLargestCoded * kLargestCoded);
  auto below = hn::Lt(squares.part[0], limit);
  for (int p = 1; p < kLaneParts; ++p) below = hn::And(below, hn::Lt(squares.part[p], limit));
  return hn::AllTrue(d, below);
}

// The lanes' largest magnitudes.
HWY_INLINE void StoreLargestLanes(const RegisterRow& row, float* HWY_RESTRICT lanes) {
  const RowTag d;
  hn::Vec<RowTag> largest[kLaneParts];
  for (int p = 0; p < kLaneParts; ++p) largest[p] = hn::Abs(row.part[p]);
  HWY_UNROLL(16)
  for (int p = kLaneParts; p < kParts; ++p) {
    largest[p % kLaneParts] = hn::Max(largest[p % kLaneParts], hn::Abs(row.part[p]));
  }
  for (int p = 0; p < kLaneParts; ++p) hn::Store(largest[p], d, lanes + p * kPartLanes);
}

// The largest of the 16 lanes of each of four rows.
HWY_INLINE void StoreTreeMaxima(const float* HWY_RESTRICT lanes, float* HWY_RESTRICT out) {
  const hn::FixedTag<float, 4> d;
  const auto four = [&](const float* of) HWY_ATTR {
    return hn::Max(hn::Max(hn::Load(d, of), hn::Load(d, of + 8)),
                   hn::Max(hn::Load(d, of + 4), hn::Load(d, of + 12)));
  };
  const auto a = four(lanes), b = four(lanes + kLanes);
  const auto c = four(lanes + 2 * kLanes), e = four(lanes + 3 * kLanes);
  const auto ab = hn::Max(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
  const auto ce = hn::Max(hn::ConcatLowerLower(d, e, c), hn::ConcatUpperUpper(d, e, c));
  hn::StoreU(hn::Max(hn::ConcatEven(d, ce, ab), hn::ConcatOdd(d, ce, ab)), d, out);
}

// Lane i gets what lane i ^ kStride has.
template <int kStride>
HWY_INLINE hn::Vec<RowTag> SwapLanes(hn::Vec<RowTag> x) {
  const RowTag d;
  if constexpr (kStride == 1) {
    return hn::Shuffle2301(x);
  } else if constexpr (kStride == 2) {
    return hn::Shuffle1032(x);
  } else if constexpr (2 * kStride == kPartLanes) {
    return hn::ConcatLowerUpper(d, x, x);
  } else {
    return hn::SwapAdjacentBlocks(x);
  }
}

// +1, or bits of +0, where bit kStride of the lane is clear, else -1 or -0.
template <int kStride>
constexpr std::array<float, 16> MakeStrideSigns(float magnitude) {
  std::array<float, 16> signs = {};
  for (int i = 0; i < 16; ++i) signs[i] = (i & kStride) == 0 ? magnitude : -magnitude;
  return signs;
}
template <int kStride>
alignas(64) inline constexpr std::array<float, 16> kStrideFactors = MakeStrideSigns<kStride>(1.0f);
template <int kStride>
alignas(64) inline constexpr std::array<float, 16> kStrideMasks = MakeStrideSigns<kStride>(0.0f);

// A product with +-1 is exact, so that its fma is one addition or subtraction. Units that multiply
// and units that only add work side by side when two rows take different ones.
enum class AddBy : uint8_t { kFma, kAdd };

template <int kStride, AddBy kBy>
HWY_INLINE void RowButterflies(RegisterRow* row) {
  const RowTag d;
  if constexpr (kStride < kPartLanes) {
    const auto factors = hn::Load(d, kStrideFactors<kStride>.data());
    const auto masks = hn::Load(d, kStrideMasks<kStride>.data());
    HWY_UNROLL(16)
    for (int p = 0; p < kParts; ++p) {
      const auto x = row->part[p];
      const auto swapped = SwapLanes<kStride>(x);
      row->part[p] = kBy == AddBy::kFma ? hn::MulAdd(x, factors, swapped)
                                        : hn::Add(hn::Xor(x, masks), swapped);
    }
  } else {
    constexpr int kApart = kStride / kPartLanes;
    const auto one = hn::Set(d, 1.0f);
    HWY_UNROLL(16)
    for (int p = 0; p < kParts; ++p) {
      if ((p & kApart) != 0) continue;
      const auto low = row->part[p];
      const auto high = row->part[p + kApart];
      row->part[p] = kBy == AddBy::kFma ? hn::MulAdd(low, one, high) : hn::Add(low, high);
      row->part[p + kApart] =
          kBy == AddBy::kFma ? hn::NegMulAdd(high, one, low) : hn::Sub(low, high);
    }
  }
}
template <int kStride>
HWY_INLINE void PairButterflies(RegisterPair* pair) {
  RowButterflies<kStride, AddBy::kFma>(&pair->a);
  RowButterflies<kStride, AddBy::kAdd>(&pair->b);
}
HWY_INLINE void AllButterflies(RegisterPair* pair) {
  PairButterflies<1>(pair);
  PairButterflies<2>(pair);
  PairButterflies<4>(pair);
  PairButterflies<8>(pair);
  PairButterflies<16>(pair);
  PairButterflies<32>(pair);
  PairButterflies<64>(pair);
}

// What the rotation of heads of 128, one block of order 128, takes from a Hadamard.
struct RegisterHadamard {
  alignas(64) float sign_bits[kRegisterDim];      // -0 where a sign is -1, else +0
  alignas(64) float signed_scales[kRegisterDim];  // scale * sign
  float scale;
};
inline void LoadHadamard(RegisterHadamard* hadamard) {
  const RowTag d;
  const Hadamard& from = HadamardOf(kRegisterDim);
  hadamard->scale = from.blocks[0].scale;
  for (int i = 0; i < kRegisterDim; i += kPartLanes) {
    const auto signs = hn::LoadU(d, from.signs.data() + i);
    hn::Store(hn::And(signs, hn::SignBit(d)), d, hadamard->sign_bits + i);
    hn::Store(hn::Mul(signs, hn::Set(d, hadamard->scale)), d, hadamard->signed_scales + i);
  }
}

// RotateByHadamard and UnrotateByHadamard. A factor of +-1 rounds nothing.
HWY_INLINE void HadamardParts(const RegisterHadamard& hadamard, RegisterPair* pair) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto sign = hn::Load(d, hadamard.sign_bits + p * kPartLanes);
    pair->a.part[p] = hn::Xor(pair->a.part[p], sign);
    pair->b.part[p] = hn::Xor(pair->b.part[p], sign);
  }
  AllButterflies(pair);
  const auto scale = hn::Set(d, hadamard.scale);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    pair->a.part[p] = hn::Mul(pair->a.part[p], scale);
    pair->b.part[p] = hn::Mul(pair->b.part[p], scale);
  }
}
HWY_INLINE void InverseHadamardParts(const RegisterHadamard& hadamard, RegisterPair* pair) {
  const RowTag d;
  AllButterflies(pair);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto scale = hn::Load(d, hadamard.signed_scales + p * kPartLanes);
    pair->a.part[p] = hn::Mul(pair->a.part[p], scale);
    pair->b.part[p] = hn::Mul(pair->b.part[p], scale);
  }
}

enum class MeanUse : uint8_t { kSubtract, kAdd };

template <MeanUse kUse>
HWY_INLINE hn::Vec<RowTag> WithMean(hn::Vec<RowTag> x, hn::Vec<RowTag> mean) {
  return kUse == MeanUse::kSubtract ? hn::Sub(x, mean) : hn::Add(x, mean);
}

// Whether every coordinate of a head of 128 is in a band, and both of a band lie in like lanes.
inline bool TurnsHalves(const RotationTable& table) {
  return table.layout == RopeLayout::kHalf && 2 * table.bands == kRegisterDim;
}

// What is done about the mean key: nothing, turn it where TurnsHalves holds, or where it does not.
enum class MeanKind : uint8_t { kNone, kHalves, kAny };

// mean [128] = FiniteMean of the row's head, un-rotated.
inline void LoadMean(const TensorView<const Float16, 3>& mean_key, const PackedRow& row,
                     float* HWY_RESTRICT mean) {
  const RowTag d;
  const Float16* from = mean_key.At(row.layer, row.kv_head);
  if (mean_key.stride[2] != 1) {
    for (int64_t i = 0; i < kRegisterDim; ++i) {
      mean[i] = FiniteMean(mean_key(row.layer, row.kv_head, i));
    }
    return;
  }
  for (int64_t i = 0; i < kRegisterDim; i += kPartLanes) {
    const auto value = LoadAsFloat(d, from + i);
    const auto finite = hn::Le(hn::Abs(value), hn::Set(d, kLargestCoded));
    hn::Store(hn::IfThenElseZero(finite, value), d, mean + i);
  }
}

// cos and sin [64] of a row's bands, where TurnsHalves holds.
struct HalfAngles {
  const float* cosine;
  const float* sine;
};
HWY_INLINE HalfAngles HalfAnglesOf(const RotationTable& table, int64_t angle) {
  const int64_t at = angle * (kRegisterDim / 2);
  return {table.cosine.data() + at, table.sine.data() + at};
}

inline constexpr size_t kLineBytes = 64;
template <size_t kBytes>
HWY_INLINE void PrefetchBytes(const void* from) {
  HWY_UNROLL(8)
  for (size_t at = 0; at < kBytes; at += kLineBytes) {
    hwy::Prefetch(static_cast<const std::byte*>(from) + at);
  }
}
HWY_INLINE void PrefetchAngles(const HalfAngles& angles) {
  constexpr size_t kBytes = kRegisterDim / 2 * sizeof(float);
  PrefetchBytes<kBytes>(angles.cosine);
  PrefetchBytes<kBytes>(angles.sine);
}

// row +- the un-rotated `mean` [128] turned by the row's angles.
template <MeanUse kUse>
HWY_INLINE void ApplyTurnedMean(const HalfAngles& angles, const float* HWY_RESTRICT mean,
                                RegisterRow* row) {
  const RowTag d;
  constexpr int kHalfParts = kParts / 2;
  HWY_UNROLL(16)
  for (int p = 0; p < kHalfParts; ++p) {
    const auto cosine = hn::LoadU(d, angles.cosine + p * kPartLanes);
    const auto sine = hn::LoadU(d, angles.sine + p * kPartLanes);
    const auto real = hn::Load(d, mean + p * kPartLanes);
    const auto imag = hn::Load(d, mean + (p + kHalfParts) * kPartLanes);
    const auto turned_real = hn::MulSub(real, cosine, hn::Mul(imag, sine));
    const auto turned_imag = hn::MulAdd(real, sine, hn::Mul(imag, cosine));
    row->part[p] = WithMean<kUse>(row->part[p], turned_real);
    row->part[p + kHalfParts] = WithMean<kUse>(row->part[p + kHalfParts], turned_imag);
  }
}
// row +- `turned` [128], a mean at the row's angles.
template <MeanUse kUse>
HWY_INLINE void ApplyMean(const float* HWY_RESTRICT turned, RegisterRow* row) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    row->part[p] = WithMean<kUse>(row->part[p], hn::Load(d, turned + p * kPartLanes));
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_REGISTER_ROW_INL_H_
