// f32 lane dots (kernels/base/lanes.h) of a chunk of rows with many vectors: four rows and as many
// vectors as a register has trees of four lanes stay in registers, and their trees are one.
#if defined(KVERN_KERNELS_CPU_SKINNY_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_SKINNY_DOTS_INL_H_
#undef KVERN_KERNELS_CPU_SKINNY_DOTS_INL_H_
#else
#define KVERN_KERNELS_CPU_SKINNY_DOTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/heads.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int64_t kQuad = 4;  // rows in a block
constexpr int64_t PadToQuad(int64_t n) { return (n + kQuad - 1) / kQuad * kQuad; }

// What rows are multiplied as.
enum class RowPower : uint8_t { kOne, kSquare };

// Strides are multiples of 16. Past `n`, up to a multiple of 16, rows hold +0 and vectors -0: the
// product leaves every lane as it is.
struct SkinnyBlock {
  const float* rows;
  int64_t row_stride;
  int64_t row_count;  // a multiple of 4
  const float* vectors;
  int64_t vector_stride;
  int64_t vector_count;
  int64_t n;
};

// Dots of four rows lie together: that of row 4 q + r with vector v is at(q, v)[r]. Room for
// PadToQuad(vectors) vectors, which a writer may fill.
struct QuadTile {
  float* data;
  int64_t stride;  // of q, a multiple of 16
  HWY_INLINE float* At(int64_t quad, int64_t vector) const {
    return data + quad * stride + vector * kQuad;
  }
};

// Strided [n] to a padded vector of a SkinnyBlock.
template <class T>
void CopySkinnyVector(TensorView<const T, 1> from, float* to) {
  for (int64_t i = 0; i < from.shape[0]; ++i) to[i] = static_cast<float>(from(i));
  std::fill(to + from.shape[0], to + PadToLanes(from.shape[0]), -0.0f);
}

using SkinnyTag = LaneTag<float>;
using SkinnyVec = hn::Vec<SkinnyTag>;
inline constexpr int kSkinnyLanes = hn::MaxLanes(SkinnyTag());
static_assert(kSkinnyLanes >= 4, "every instruction set of targets.h holds four f32");
// Vectors in a block: a register ends with four sums of each.
inline constexpr int kSkinnyVectors = kSkinnyLanes / 4;

// One register for each row of a block.
struct Quad {
  SkinnyVec r0, r1, r2, r3;
};

HWY_INLINE Quad ZeroQuad() {
  const SkinnyVec zero = hn::Zero(SkinnyTag());
  return {zero, zero, zero, zero};
}
HWY_INLINE Quad Add(const Quad& a, const Quad& b) {
  return {hn::Add(a.r0, b.r0), hn::Add(a.r1, b.r1), hn::Add(a.r2, b.r2), hn::Add(a.r3, b.r3)};
}
template <RowPower power>
HWY_INLINE Quad LoadQuad(const float* HWY_RESTRICT row, int64_t stride) {
  const SkinnyTag d;
  const Quad x = {hn::Load(d, row), hn::Load(d, row + stride), hn::Load(d, row + 2 * stride),
                  hn::Load(d, row + 3 * stride)};
  if (power == RowPower::kOne) return x;
  return {hn::Mul(x.r0, x.r0), hn::Mul(x.r1, x.r1), hn::Mul(x.r2, x.r2), hn::Mul(x.r3, x.r3)};
}
HWY_INLINE void MulAddQuad(const Quad& rows, SkinnyVec vector, Quad& sums) {
  sums.r0 = hn::MulAdd(rows.r0, vector, sums.r0);
  sums.r1 = hn::MulAdd(rows.r1, vector, sums.r1);
  sums.r2 = hn::MulAdd(rows.r2, vector, sums.r2);
  sums.r3 = hn::MulAdd(rows.r3, vector, sums.r3);
}

// Sums of up to four vectors; the missing ones repeat the first.
struct VectorSums {
  Quad v0, v1, v2, v3;
};

// The sums of the register's share of the lanes, from lane `part` on.
template <int kVectors, RowPower power>
HWY_INLINE VectorSums SumPart(const SkinnyBlock& block, const float* HWY_RESTRICT row,
                              const float* HWY_RESTRICT vector, int64_t part) {
  const SkinnyTag d;
  const int64_t step = block.vector_stride;
  Quad v0 = ZeroQuad(), v1 = v0, v2 = v0, v3 = v0;
  for (int64_t i = part; i < block.n + part; i += kLanes) {
    const Quad x = LoadQuad<power>(row + i, block.row_stride);
    MulAddQuad(x, hn::Load(d, vector + i), v0);
    if (kVectors > 1) MulAddQuad(x, hn::Load(d, vector + step + i), v1);
    if (kVectors > 2) MulAddQuad(x, hn::Load(d, vector + 2 * step + i), v2);
    if (kVectors > 3) MulAddQuad(x, hn::Load(d, vector + 3 * step + i), v3);
  }
  return {v0, kVectors > 1 ? v1 : v0, kVectors > 2 ? v2 : v0, kVectors > 3 ? v3 : v0};
}
HWY_INLINE VectorSums Add(const VectorSums& a, const VectorSums& b) {
  return {Add(a.v0, b.v0), Add(a.v1, b.v1), Add(a.v2, b.v2), Add(a.v3, b.v3)};
}

// Steps 8 and 4 of the tree for one row: four lanes of each vector, one vector after the other.
HWY_INLINE SkinnyVec FourLanesOfEach(SkinnyVec v0, SkinnyVec v1, SkinnyVec v2, SkinnyVec v3) {
  const SkinnyTag d;
  if constexpr (kSkinnyLanes == 16) {
    const SkinnyVec a = hn::Add(hn::ConcatLowerLower(d, v2, v0), hn::ConcatUpperUpper(d, v2, v0));
    const SkinnyVec b = hn::Add(hn::ConcatLowerLower(d, v3, v1), hn::ConcatUpperUpper(d, v3, v1));
    return hn::OddEvenBlocks(hn::Add(b, hn::SwapAdjacentBlocks(b)),
                             hn::Add(a, hn::SwapAdjacentBlocks(a)));
  } else if constexpr (kSkinnyLanes == 8) {
    return hn::Add(hn::ConcatLowerLower(d, v1, v0), hn::ConcatUpperUpper(d, v1, v0));
  } else {
    return v0;
  }
}

// Steps 2 and 1 for four rows: their dots side by side, one vector after the other.
HWY_INLINE SkinnyVec DotsOfFour(const Quad& sums) {
  const SkinnyTag d;
  const hn::Repartition<double, SkinnyTag> pairs;
  const auto two_lanes = [&](SkinnyVec a, SkinnyVec b) HWY_ATTR {
    const auto x = hn::BitCast(pairs, a), y = hn::BitCast(pairs, b);
    return hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, x, y)),
                   hn::BitCast(d, hn::InterleaveUpper(pairs, x, y)));
  };
  const SkinnyVec even = two_lanes(sums.r0, sums.r2), odd = two_lanes(sums.r1, sums.r3);
  return hn::OddEven(hn::Add(odd, hn::Shuffle2301(odd)), hn::Add(even, hn::Shuffle2301(even)));
}

// The dots of a block, from its sums over all lanes.
HWY_INLINE SkinnyVec DotsOfBlock(const VectorSums& sums) {
  const auto& [v0, v1, v2, v3] = sums;
  return DotsOfFour(
      {FourLanesOfEach(v0.r0, v1.r0, v2.r0, v3.r0), FourLanesOfEach(v0.r1, v1.r1, v2.r1, v3.r1),
       FourLanesOfEach(v0.r2, v1.r2, v2.r2, v3.r2), FourLanesOfEach(v0.r3, v1.r3, v2.r3, v3.r3)});
}

// part(lane): the sums of the lanes from `lane` on, as many as a register has. What lies in other
// registers is added as the tree's first steps say.
template <class Part>
HWY_INLINE VectorSums SumParts(Part part) {
  if constexpr (kSkinnyLanes == 8) {
    return Add(part(0), part(8));
  } else if constexpr (kSkinnyLanes == 4) {
    return Add(Add(part(0), part(8)), Add(part(4), part(12)));
  } else {
    return part(0);
  }
}

// Dots of all rows with kVectors vectors from `vector` on.
template <int kVectors, RowPower power>
HWY_INLINE void RunSkinnyBlocks(const SkinnyBlock& block, int64_t vector, const QuadTile& out) {
  const float* from = block.vectors + vector * block.vector_stride;
  for (int64_t quad = 0; quad * kQuad < block.row_count; ++quad) {
    const float* row = block.rows + quad * kQuad * block.row_stride;
    const auto part = [&](int64_t lane)
                          HWY_ATTR { return SumPart<kVectors, power>(block, row, from, lane); };
    hn::Store(DotsOfBlock(SumParts(part)), SkinnyTag(), out.At(quad, vector));
  }
}

struct NothingMeanwhile {
  HWY_INLINE void operator()(int64_t /*step*/, int64_t /*steps*/) const {}
};

// at(q, v)[r] = LaneDot of row 4 q + r (or of its squares) and vector v. meanwhile(step, steps) is
// called with steps ascending from 0, all of them. It is a struct whose call is inlined, no lambda:
// compilers drop calls of functions that only prefetch.
template <RowPower power, class Meanwhile>
HWY_INLINE void SkinnyDots(const SkinnyBlock& block, const QuadTile& out, Meanwhile meanwhile) {
  const int64_t steps = (block.vector_count + kSkinnyVectors - 1) / kSkinnyVectors;
  int64_t vector = 0;
  for (; vector + kSkinnyVectors <= block.vector_count; vector += kSkinnyVectors) {
    meanwhile(vector / kSkinnyVectors, steps);
    RunSkinnyBlocks<kSkinnyVectors, power>(block, vector, out);
  }
  const int64_t left = block.vector_count - vector;
  if (left > 0) meanwhile(steps - 1, steps);
  if (left == 1) RunSkinnyBlocks<1, power>(block, vector, out);
  if constexpr (kSkinnyVectors > 2) {
    if (left == 2) RunSkinnyBlocks<2, power>(block, vector, out);
    if (left == 3) RunSkinnyBlocks<3, power>(block, vector, out);
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
