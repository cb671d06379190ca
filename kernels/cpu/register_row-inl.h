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

#include "hwy/highway.h"
#include "kernels/base/band_rotation.h"
#include "kernels/base/coding.h"
#include "kernels/base/dtype.h"
#include "kernels/base/hadamard.h"
#include "kernels/base/lanes.h"
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

// Narrower registers would spill more than they save.
inline bool FitsRegisters(const KvRef& ref) {
  return kPartLanes >= 8 && ref.head_dim == kRegisterDim && ref.HasContiguousRows();
}

template <class T>
HWY_INLINE void LoadParts(const T* from, RegisterRow* row) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) row->part[p] = LoadAsFloat(d, from + p * kPartLanes);
}
HWY_INLINE void StoreParts(const RegisterRow& row, float* HWY_RESTRICT to) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) hn::Store(row.part[p], d, to + p * kPartLanes);
}

// Bits without a sign ascend with the magnitude, NaN above all: those of kLargestCoded in T, or of
// the largest number below it.
template <class T>
struct CodableBits;
template <>
struct CodableBits<BFloat16> {
  using Bits = uint16_t;
  static constexpr Bits kLargest = 0x477F, kMagnitude = 0x7FFF;
};
template <>
struct CodableBits<Float16> {
  using Bits = uint16_t;
  static constexpr Bits kLargest = 0x7BFF, kMagnitude = 0x7FFF;
};
template <>
struct CodableBits<float> {
  using Bits = uint32_t;
  static constexpr Bits kLargest = 0x477FE000, kMagnitude = 0x7FFFFFFF;
};

// Whether none of the row's numbers needs sanitising.
template <class T>
HWY_INLINE bool AllCodable(const T* from) {
  using Rule = CodableBits<T>;
  using Bits = typename Rule::Bits;
  const hn::Repartition<Bits, RowTag> d;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(d));
  const auto* bits = reinterpret_cast<const Bits*>(from);
  auto largest = hn::Zero(d);
  HWY_UNROLL(16)
  for (int i = 0; i < kRegisterDim; i += kStep) {
    largest = hn::Max(largest, hn::And(hn::LoadU(d, bits + i), hn::Set(d, Rule::kMagnitude)));
  }
  // Not above the limit: only == and < of signed lanes are cheap everywhere.
  const auto limit = hn::Set(d, Rule::kLargest);
  return hn::AllTrue(d, hn::Eq(hn::Max(largest, limit), limit));
}

// The lanes of the sum of squares (kernels/base/lanes.h), in f32.
HWY_INLINE void StoreSquareLanes(const RegisterRow& row, float* HWY_RESTRICT lanes) {
  const RowTag d;
  hn::Vec<RowTag> sum[kLaneParts];
  for (int p = 0; p < kLaneParts; ++p) sum[p] = hn::Zero(d);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    sum[p % kLaneParts] = hn::MulAdd(row.part[p], row.part[p], sum[p % kLaneParts]);
  }
  for (int p = 0; p < kLaneParts; ++p) hn::Store(sum[p], d, lanes + p * kPartLanes);
}
// The same in f64.
HWY_INLINE void StoreSquareLanes(const RegisterRow& row, double* HWY_RESTRICT lanes) {
  const hn::CappedTag<double, kPartLanes / 2> wide;
  const hn::Rebind<float, decltype(wide)> half;
  constexpr int kHalf = static_cast<int>(hn::MaxLanes(wide));
  hn::Vec<decltype(wide)> low[kLaneParts];
  hn::Vec<decltype(wide)> high[kLaneParts];
  for (int p = 0; p < kLaneParts; ++p) low[p] = high[p] = hn::Zero(wide);
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    const auto a = hn::PromoteTo(wide, hn::LowerHalf(half, row.part[p]));
    const auto b = hn::PromoteTo(wide, hn::UpperHalf(half, row.part[p]));
    low[p % kLaneParts] = hn::MulAdd(a, a, low[p % kLaneParts]);
    high[p % kLaneParts] = hn::MulAdd(b, b, high[p % kLaneParts]);
  }
  for (int p = 0; p < kLaneParts; ++p) {
    hn::Store(low[p], wide, lanes + p * kPartLanes);
    hn::Store(high[p], wide, lanes + p * kPartLanes + kHalf);
  }
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

// +1 where bit kStride of the lane is clear, else -1.
template <int kStride>
constexpr std::array<float, 16> MakeStrideSigns() {
  std::array<float, 16> signs = {};
  for (int i = 0; i < 16; ++i) signs[i] = (i & kStride) == 0 ? 1.0f : -1.0f;
  return signs;
}
template <int kStride>
alignas(64) inline constexpr std::array<float, 16> kStrideSigns = MakeStrideSigns<kStride>();

template <int kStride>
HWY_INLINE void RowButterflies(RegisterRow* row) {
  const RowTag d;
  if constexpr (kStride < kPartLanes) {
    // The product is exact, so that the fma is the one addition or subtraction.
    const auto signs = hn::Load(d, kStrideSigns<kStride>.data());
    HWY_UNROLL(16)
    for (int p = 0; p < kParts; ++p) {
      row->part[p] = hn::MulAdd(row->part[p], signs, SwapLanes<kStride>(row->part[p]));
    }
  } else {
    constexpr int kApart = kStride / kPartLanes;
    HWY_UNROLL(16)
    for (int p = 0; p < kParts; ++p) {
      if ((p & kApart) != 0) continue;
      const auto low = row->part[p];
      const auto high = row->part[p + kApart];
      row->part[p] = hn::Add(low, high);
      row->part[p + kApart] = hn::Sub(low, high);
    }
  }
}
HWY_INLINE void AllButterflies(RegisterRow* row) {
  RowButterflies<1>(row);
  RowButterflies<2>(row);
  RowButterflies<4>(row);
  RowButterflies<8>(row);
  RowButterflies<16>(row);
  RowButterflies<32>(row);
  RowButterflies<64>(row);
}

HWY_INLINE void MultiplyParts(const float* HWY_RESTRICT by, RegisterRow* row) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) {
    row->part[p] = hn::Mul(row->part[p], hn::LoadU(d, by + p * kPartLanes));
  }
}
HWY_INLINE void ScaleParts(float scale, RegisterRow* row) {
  const RowTag d;
  HWY_UNROLL(16)
  for (int p = 0; p < kParts; ++p) row->part[p] = hn::Mul(row->part[p], hn::Set(d, scale));
}

// RotateByHadamard and UnrotateByHadamard of a head of 128, which is one block of order 128.
HWY_INLINE void HadamardParts(const Hadamard& hadamard, RegisterRow* row) {
  MultiplyParts(hadamard.signs.data(), row);
  AllButterflies(row);
  ScaleParts(hadamard.blocks[0].scale, row);
}
HWY_INLINE void InverseHadamardParts(const Hadamard& hadamard, RegisterRow* row) {
  AllButterflies(row);
  ScaleParts(hadamard.blocks[0].scale, row);
  MultiplyParts(hadamard.signs.data(), row);
}

enum class MeanUse : uint8_t { kSubtract, kAdd };

template <MeanUse kUse>
HWY_INLINE hn::Vec<RowTag> WithMean(hn::Vec<RowTag> x, hn::Vec<RowTag> mean) {
  return kUse == MeanUse::kSubtract ? hn::Sub(x, mean) : hn::Add(x, mean);
}

// Whether every coordinate of a head of 128 is in a band, and both of a band lie in like lanes.
inline bool TurnsHalves(const RotationRow& angles) {
  return angles.layout == RopeLayout::kHalf && 2 * angles.bands == kRegisterDim;
}

// row +- the un-rotated `mean` [128] turned by `angles`, for which TurnsHalves holds.
template <MeanUse kUse>
HWY_INLINE void ApplyTurnedMean(const RotationRow& angles, const float* HWY_RESTRICT mean,
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
