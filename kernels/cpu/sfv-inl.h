// The sign-folded vector codes: blocks of 4 coordinates in the lanes, so that each vector of the
// table is read once for 32 or more coordinates and the first of equally near ones wins by itself.
#if defined(KVERN_KERNELS_CPU_SFV_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_SFV_INL_H_
#undef KVERN_KERNELS_CPU_SFV_INL_H_
#else
#define KVERN_KERNELS_CPU_SFV_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "hwy/highway.h"
#include "kernels/base/coding.h"
#include "kernels/base/sfv_rules.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/kv_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int64_t kMaxCodedDim = 1024;
// Coordinates that one search takes: two registers of blocks.
inline constexpr int64_t kSfvStride = 2 * kSfvCoords * hn::MaxLanes(RowTag());
inline constexpr int64_t kSfvRow = (kMaxCodedDim + kSfvStride - 1) / kSfvStride * kSfvStride;

using SfvTag = hn::FixedTag<float, kSfvCoords>;

// index[b] of the vector nearest to |x[4 b .. 4 b + 3]|, for kSfvStride coordinates.
HWY_INLINE void NearestVectors(std::span<const SfvVector> vectors, const float* HWY_RESTRICT x,
                               int32_t* HWY_RESTRICT index) {
  const RowTag d;
  const hn::RebindToSigned<RowTag> integers;
  using V = hn::Vec<RowTag>;
  constexpr int64_t kBlocks = kSfvStride / 2;
  struct Blocks {  // coordinate j of each block in x_j
    V x0, x1, x2, x3;
  };
  const auto load = [&](const float* from) HWY_ATTR {
    Blocks blocks;
    hn::LoadInterleaved4(d, from, blocks.x0, blocks.x1, blocks.x2, blocks.x3);
    return Blocks{hn::Abs(blocks.x0), hn::Abs(blocks.x1), hn::Abs(blocks.x2), hn::Abs(blocks.x3)};
  };
  const auto distance = [&](const SfvVector& vector, const Blocks& blocks) HWY_ATTR {
    V sum = hn::Set(d, vector.half_square);
    sum = hn::NegMulAdd(blocks.x0, hn::Set(d, vector.magnitude[0]), sum);
    sum = hn::NegMulAdd(blocks.x1, hn::Set(d, vector.magnitude[1]), sum);
    sum = hn::NegMulAdd(blocks.x2, hn::Set(d, vector.magnitude[2]), sum);
    return hn::NegMulAdd(blocks.x3, hn::Set(d, vector.magnitude[3]), sum);
  };
  const Blocks a = load(x), b = load(x + kBlocks);
  V a_least = distance(vectors[0], a), b_least = distance(vectors[0], b);
  auto a_index = hn::Zero(integers), b_index = hn::Zero(integers);
  for (size_t n = 1; n < vectors.size(); ++n) {
    const auto number = hn::Set(integers, static_cast<int32_t>(n));
    const V a_distance = distance(vectors[n], a), b_distance = distance(vectors[n], b);
    const auto a_nearer = hn::Lt(a_distance, a_least), b_nearer = hn::Lt(b_distance, b_least);
    a_least = hn::IfThenElse(a_nearer, a_distance, a_least);
    b_least = hn::IfThenElse(b_nearer, b_distance, b_least);
    a_index = hn::IfThenElse(hn::RebindMask(integers, a_nearer), number, a_index);
    b_index = hn::IfThenElse(hn::RebindMask(integers, b_nearer), number, b_index);
  }
  hn::StoreU(a_index, integers, index);
  hn::StoreU(b_index, integers, index + hn::Lanes(d));
}

// Sign bits of a block as changes of sign.
HWY_INLINE hn::Vec<SfvTag> SfvSigns(uint32_t signs) {
  const hn::RebindToUnsigned<SfvTag> bits;
  HWY_ALIGN static constexpr uint32_t kShifts[kSfvCoords] = {31, 30, 29, 28};
  const auto shifted = hn::Shl(hn::Set(bits, signs), hn::Load(bits, kShifts));
  return hn::BitCast(SfvTag(), hn::And(shifted, hn::Set(bits, 0x80000000u)));
}

struct SfvRow {
  CodecId codec;
  int64_t head_dim;
  TokenBytes<std::byte> to;
};

// The levels of one block x; its index and signs go to where the format has them.
HWY_INLINE hn::Vec<SfvTag> PutSfvBlock(const SfvRow& row, int64_t block, uint32_t index,
                                       const float* HWY_RESTRICT x) {
  const SfvTag d;
  const auto negative = hn::Lt(hn::Load(d, x), hn::Zero(d));
  uint8_t bits[8];
  hn::StoreMaskBits(d, negative, bits);
  const uint32_t signs = bits[0] & 15u;
  if (row.codec == CodecId::kSfv2) {
    row.to.codes[block] = static_cast<std::byte>(index << kSfvCoords | signs);
  } else {
    row.to.codes[block] = static_cast<std::byte>(index);
    row.to.signs[block / 2] |= static_cast<std::byte>(signs << block % 2 * kSfvCoords);
  }
  const auto magnitude = hn::LoadU(d, SfvVectors(row.codec)[index].magnitude);
  return hn::IfThenElse(negative, hn::Neg(magnitude), magnitude);
}

// Codes of x, which has been normalized and reaches to a multiple of kSfvStride, and their levels.
HWY_INLINE void FindSfvLevels(const SfvRow& row, const float* HWY_RESTRICT x,
                              float* HWY_RESTRICT levels) {
  const std::span<const SfvVector> vectors = SfvVectors(row.codec);
  for (int64_t first = 0; first < row.head_dim; first += kSfvStride) {
    int32_t index[kSfvStride / kSfvCoords];
    NearestVectors(vectors, x + first, index);
    const int64_t end = std::min(first + kSfvStride, row.head_dim);
    for (int64_t at = first; at < end; at += kSfvCoords) {
      const auto nearest = static_cast<uint32_t>(index[(at - first) / kSfvCoords]);
      hn::Store(PutSfvBlock(row, at / kSfvCoords, nearest, x + at), SfvTag(), levels + at);
    }
  }
}

// Codes x [padded to a multiple of 16 by zeros]; x becomes what the codes leave over.
// `squared_length` is that of the row before its rotation.
inline void CodeSfv(const SfvRow& row, float squared_length, float* HWY_RESTRICT x) {
  const RowTag d;
  const int64_t head_dim = row.head_dim, padded = PaddedDim(head_dim);
  const float normalizer = Lm4Normalizer(squared_length, head_dim);
  CodeScale scale = RoundScale(0.0f);
  if (normalizer != 0.0f) {  // else codes arrive zeroed
    HWY_ALIGN float normalized[kSfvRow];
    HWY_ALIGN float levels[kSfvRow];
    for (int64_t i = 0; i < padded; i += hn::Lanes(d)) {
      hn::Store(hn::Mul(hn::Load(d, x + i), hn::Set(d, normalizer)), d, normalized + i);
    }
    for (int64_t i = padded; i % kSfvStride != 0; ++i) normalized[i] = 0.0f;
    for (int64_t i = head_dim; i < padded; ++i) levels[i] = 0.0f;
    FindSfvLevels(row, normalized, levels);
    scale = row.codec == CodecId::kSfv2
                ? SfvUnbiasedScale(squared_length, head_dim, OneLaneDot(levels, normalized, padded))
                : Lm4Scale(squared_length, OneLaneDot(levels, levels, padded));
    const auto step = hn::Set(d, scale.value);
    for (int64_t i = 0; i < padded; i += hn::Lanes(d)) {
      hn::Store(hn::NegMulAdd(step, hn::Load(d, levels + i), hn::Load(d, x + i)), d, x + i);
    }
  }
  std::memcpy(row.to.scales, &scale.stored, sizeof(scale.stored));
}

// x = levels * scale.
inline void RestoreSfv(CodecId codec, int64_t head_dim, const TokenBytes<const std::byte>& from,
                       float* HWY_RESTRICT x) {
  const SfvTag d;
  Float16 stored;
  std::memcpy(&stored, from.scales, sizeof(stored));
  const auto scale = hn::Set(d, ToFloat(stored));
  const std::span<const SfvVector> vectors = SfvVectors(codec);
  for (int64_t block = 0; block < head_dim / kSfvCoords; ++block) {
    uint32_t index = static_cast<uint32_t>(from.codes[block]);
    uint32_t signs = index;
    if (codec == CodecId::kSfv2) {
      index >>= kSfvCoords;
    } else {
      signs = static_cast<uint32_t>(from.signs[block / 2]) >> block % 2 * kSfvCoords;
    }
    const auto magnitude = hn::LoadU(d, vectors[index].magnitude);
    hn::Store(hn::Mul(scale, hn::Xor(magnitude, SfvSigns(signs))), d, x + block * kSfvCoords);
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
