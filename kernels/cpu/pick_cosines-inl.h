// What four candidates have most in common with a range of picks: register blocks of dots, each
// turned to cosines where it stands.
#if defined(KVERN_KERNELS_CPU_PICK_COSINES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_PICK_COSINES_INL_H_
#undef KVERN_KERNELS_CPU_PICK_COSINES_INL_H_
#else
#define KVERN_KERNELS_CPU_PICK_COSINES_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernels/base/diverse_rules.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/skinny_dots-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Values of one token in every row of a group.
struct GroupRow {
  const float* values;   // [group, padded]
  const float* inverse;  // [group] 1 / |value|
};

class PickCosines {
 public:
  // Picks of a block; a block that is not full ends with zeros, which have cosine 0.
  static constexpr int64_t kBlock = kSkinnyVectors;

  // `padded`: floats of a row, a multiple of 16.
  PickCosines(Scratch& scratch, int64_t room, int64_t group, int64_t padded)
      : group_(group),
        padded_(padded),
        room_(PadToLanes(room)),
        values_(scratch.Take<float>(room_ * group * padded)),
        inverse_(scratch.Take<float>(room_ * group * kQuad)) {}

  void Add(const GroupRow& row) {
    if (made_ % kBlock == 0) Clear(made_);
    float* values = values_ + made_ * group_ * padded_;
    std::copy(row.values, row.values + group_ * padded_, values);
    for (int64_t i = 0; i < group_; ++i) {
      float* inverse = inverse_ + (i * room_ + made_) * kQuad;
      std::fill(inverse, inverse + kQuad, row.inverse[i]);
    }
    ++made_;
  }

  // most [4] = the redundancy of each of four candidates with picks [begin, end); begin is a
  // multiple of kBlock. Within a row of the group `rows` and `inverses` [group, 4] are theirs.
  HWY_INLINE void Largest(const float* const* rows, const float* inverses, int64_t begin,
                          int64_t end, float* HWY_RESTRICT most) const {
    if (group_ == 1) {
      LargestOfOne(rows, inverses, begin, end, most);
    } else {
      LargestOfMany(rows, inverses, begin, end, most);
    }
  }

 private:
  void Clear(int64_t first) {
    float* values = values_ + first * group_ * padded_;
    std::fill(values, values + kBlock * group_ * padded_, 0.0f);
    for (int64_t i = 0; i < group_; ++i) {
      float* inverse = inverse_ + (i * room_ + first) * kQuad;
      std::fill(inverse, inverse + kBlock * kQuad, 0.0f);
    }
  }

  // RowCosine of four candidates with a block of picks in row `i` of the group, pick by pick.
  HWY_INLINE SkinnyVec Cosines(const float* const* rows, const float* inverses, int64_t pick,
                               int64_t i) const {
    const SkinnyTag d;
    const float* picks = values_ + (pick * group_ + i) * padded_;
    const auto part = [&](int64_t lane) HWY_ATTR { return Sums(rows, i, picks, lane); };
    const SkinnyVec dots = DotsOfBlock(SumParts(part));
    const SkinnyVec of_picks = hn::Load(d, inverse_ + (i * room_ + pick) * kQuad);
    const SkinnyVec scale = hn::Mul(hn::LoadDup128(d, inverses + i * kQuad), of_picks);
    const SkinnyVec cosine = hn::Mul(dots, scale);
    const SkinnyVec one = hn::Set(d, 1.0f);
    const SkinnyVec clamped = hn::Max(hn::Min(cosine, one), hn::Neg(one));
    return hn::IfThenZeroElse(hn::IsNaN(cosine), clamped);
  }

  HWY_INLINE VectorSums Sums(const float* const* rows, int64_t i, const float* picks,
                             int64_t lane) const {
    const SkinnyTag d;
    const int64_t step = group_ * padded_;
    const int64_t at = i * padded_;
    const float *r0 = rows[0] + at, *r1 = rows[1] + at, *r2 = rows[2] + at, *r3 = rows[3] + at;
    Quad v0 = ZeroQuad(), v1 = v0, v2 = v0, v3 = v0;
    for (int64_t k = lane; k < padded_; k += kLanes) {
      const Quad x = {hn::Load(d, r0 + k), hn::Load(d, r1 + k), hn::Load(d, r2 + k),
                      hn::Load(d, r3 + k)};
      MulAddQuad(x, hn::Load(d, picks + k), v0);
      if (kBlock > 1) MulAddQuad(x, hn::Load(d, picks + step + k), v1);
      if (kBlock > 2) MulAddQuad(x, hn::Load(d, picks + 2 * step + k), v2);
      if (kBlock > 3) MulAddQuad(x, hn::Load(d, picks + 3 * step + k), v3);
    }
    return {v0, kBlock > 1 ? v1 : v0, kBlock > 2 ? v2 : v0, kBlock > 3 ? v3 : v0};
  }

  // Of one row the sum of cosines is the cosine. Not inlined: the registers are needed here.
  HWY_NOINLINE void LargestOfOne(const float* const* rows, const float* inverses, int64_t begin,
                                 int64_t end, float* HWY_RESTRICT most) const {
    const SkinnyTag d;
    SkinnyVec largest = hn::Zero(d);
    for (int64_t pick = begin; pick < end; pick += kBlock) {
      largest = hn::Max(largest, Cosines(rows, inverses, pick, 0));
    }
    HWY_ALIGN float all[kSkinnyLanes];
    hn::Store(largest, d, all);
    for (int64_t r = 0; r < kQuad; ++r) {
      float of_row = all[r];
      for (int64_t k = 1; k < kBlock; ++k) of_row = std::max(of_row, all[k * kQuad + r]);
      most[r] = Redundancy(of_row, 1);
    }
  }

  HWY_NOINLINE void LargestOfMany(const float* const* rows, const float* inverses, int64_t begin,
                                  int64_t end, float* HWY_RESTRICT most) const {
    const SkinnyTag d;
    double largest[kQuad] = {};
    for (int64_t pick = begin; pick < end; pick += kBlock) {
      double sums[kSkinnyLanes] = {};
      for (int64_t i = 0; i < group_; ++i) {
        HWY_ALIGN float cosines[kSkinnyLanes];
        hn::Store(Cosines(rows, inverses, pick, i), d, cosines);
        for (int64_t k = 0; k < kSkinnyLanes; ++k) sums[k] += cosines[k];
      }
      for (int64_t k = 0; k < kSkinnyLanes; ++k) {
        largest[k % kQuad] = std::max(largest[k % kQuad], sums[k]);
      }
    }
    for (int64_t r = 0; r < kQuad; ++r) most[r] = Redundancy(largest[r], group_);
  }

  const int64_t group_;
  const int64_t padded_;
  const int64_t room_;
  int64_t made_ = 0;
  float* const values_;   // [room, group, padded]
  float* const inverse_;  // [group, room, 4] each four times
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
