// Sums of rows over tokens, one per coordinate, in the order of ruling 6.
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

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Tokens come ascending; CloseTile follows the last token of every 256-token tile.
class DimSums {
 public:
  DimSums(Scratch& scratch, int64_t n)
      : n_(PadToLanes(n)),
        lanes_(scratch.Take<double>(kLanes * n_)),
        totals_(scratch.Take<double>(n_)) {}

  // Once scratch.Taken() is ok.
  void Clear() {
    std::fill(lanes_, lanes_ + kLanes * n_, 0.0);
    std::fill(totals_, totals_ + n_, 0.0);
  }
  // Adds factor * row, rounded once.
  HWY_INLINE void Add(int64_t token, const float* row, double factor) {
    const hn::ScalableTag<double> d;
    const hn::Rebind<float, decltype(d)> narrow;
    double* lane = lanes_ + token % kLanes * n_;
    const auto by = hn::Set(d, factor);
    for (int64_t i = 0; i < n_; i += static_cast<int64_t>(hn::MaxLanes(d))) {
      const auto x = hn::PromoteTo(d, hn::Load(narrow, row + i));
      hn::Store(hn::MulAdd(x, by, hn::Load(d, lane + i)), d, lane + i);
    }
  }
  HWY_INLINE void CloseTile() {
    const hn::ScalableTag<double> d;
    for (int64_t i = 0; i < n_; i += static_cast<int64_t>(hn::MaxLanes(d))) {
      for (int64_t half = kLanes / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) {
          double* into = lanes_ + lane * n_ + i;
          const auto other = hn::Load(d, lanes_ + (lane + half) * n_ + i);
          hn::Store(hn::Add(hn::Load(d, into), other), d, into);
        }
      }
      hn::Store(hn::Add(hn::Load(d, totals_ + i), hn::Load(d, lanes_ + i)), d, totals_ + i);
    }
    std::fill(lanes_, lanes_ + kLanes * n_, 0.0);
  }
  double* totals() { return totals_; }

 private:
  int64_t n_;
  double* lanes_;
  double* totals_;
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
