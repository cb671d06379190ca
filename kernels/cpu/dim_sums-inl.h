// Sums of rows over tokens, one per coordinate, in the order of ruling 6: one 256-token tile of one
// head at a time, so that its lanes stay in the first cache.
#if defined(KVERN_KERNELS_CPU_DIM_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_DIM_SUMS_INL_H_
#undef KVERN_KERNELS_CPU_DIM_SUMS_INL_H_
#else
#define KVERN_KERNELS_CPU_DIM_SUMS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/lanes.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/unroll-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

class DimSums {
 public:
  DimSums(Scratch& scratch, int64_t n)
      : n_(PadToLanes(n)), lanes_(scratch.Take<double>(kLanes * n_)) {}

  // Once scratch.Taken() is ok.
  void Clear() { std::fill(lanes_, lanes_ + kLanes * n_, 0.0); }
  // Adds factor * row [padded n], rounded once; `row` is aligned.
  HWY_INLINE void Add(int64_t token, const float* row, double factor) {
    const hn::CappedTag<double, kLanes> d;
    const hn::Rebind<float, decltype(d)> narrow;
    double* lane = lanes_ + token % kLanes * n_;
    const auto by = hn::Set(d, factor);
    for (int64_t i = 0; i < n_; i += kLanes) {
      Unroll<kLanes / kStep>([&](auto k) KVERN_INLINE_STEP {
        const int64_t at = i + k * kStep;
        const auto x = hn::PromoteTo(d, hn::Load(narrow, row + at));
        hn::Store(hn::MulAdd(x, by, hn::Load(d, lane + at)), d, lane + at);
      });
    }
  }
  // Ends the tile: adds its sums to totals [padded n], aligned, and clears them.
  HWY_INLINE void CloseTile(double* totals) {
    const hn::CappedTag<double, kLanes> d;
    using V = hn::Vec<decltype(d)>;
    for (int64_t i = 0; i < n_; i += kStep) {
      V sum[kLanes / 2];
      Unroll<kLanes / 2>([&](auto k) KVERN_INLINE_STEP {
        const V other = hn::Load(d, lanes_ + (k + kLanes / 2) * n_ + i);
        sum[k] = hn::Add(hn::Load(d, lanes_ + k * n_ + i), other);
      });
      Unroll<4>([&](auto k) KVERN_INLINE_STEP { sum[k] = hn::Add(sum[k], sum[k + 4]); });
      Unroll<2>([&](auto k) KVERN_INLINE_STEP { sum[k] = hn::Add(sum[k], sum[k + 2]); });
      hn::Store(hn::Add(hn::Load(d, totals + i), hn::Add(sum[0], sum[1])), d, totals + i);
    }
    Clear();
  }

 private:
  static constexpr int kStep = static_cast<int>(hn::MaxLanes(hn::CappedTag<double, kLanes>()));

  int64_t n_;
  double* lanes_;
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
