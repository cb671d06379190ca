// Sums of rows over tokens, one per coordinate, in the order of ruling 6: one 256-token tile of one
// head at a time, a few rows of each lane together.
#if defined(KVERN_KERNELS_CPU_DIM_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_DIM_SUMS_INL_H_
#undef KVERN_KERNELS_CPU_DIM_SUMS_INL_H_
#else
#define KVERN_KERNELS_CPU_DIM_SUMS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/base/lanes.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/unroll-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

class DimSums {
 public:
  DimSums(Scratch& scratch, int64_t n)
      : n_(PadToLanes(n)),
        rows_(TakeTile<float>(scratch, kRows, n)),
        factors_(scratch.Take<double>(kRows)),
        lanes_(scratch.Take<double>(kLanes * n_)) {}

  // Memory of a chunk's rows [16, padded n], aligned; all are read, though a chunk may be shorter.
  TensorView<float, 2> Rows(int64_t first) const {
    return {rows_.At(first % kRows), {kLanes, n_}, {rows_.stride[0], 1}};
  }
  // [16] that the chunk's rows are multiplied with before they are added, in one rounding. A row of
  // zeros, or a factor of 0 for a finite row, adds nothing.
  double* Factors(int64_t first) const { return factors_ + first % kRows; }
  void FillFactors(double factor) { std::fill_n(factors_, kRows, factor); }

  // After the chunk that ends before token `end` has its rows and factors; chunks come in order.
  // With `totals` [padded n], aligned, the tile ends and its sums are added there.
  HWY_INLINE void Advance(int64_t end, double* totals) {
    const int64_t first = (end - 1) / kRows * kRows;
    if (end % kRows != 0 && totals == nullptr) return;
    AddRows(first, end - first);
    if (totals != nullptr) AddLanes(totals);
  }

 private:
  static constexpr int kStep = static_cast<int>(hn::MaxLanes(hn::CappedTag<double, kLanes>()));
  // Rows that wait in the first cache: the more of them a lane has, the less often are its sums
  // loaded and stored.
  static constexpr int64_t kRows = 2 * kLanes;

  HWY_INLINE void AddRows(int64_t first, int64_t count) const {
    // Sums in registers: enough to hide the latency of fma.
    constexpr int kSums = 8;
    const bool starts = first % kTileTokens == 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      int64_t i = 0;
      const auto add = [&](auto sums) KVERN_INLINE_STEP {
        if (starts) {
          SumLane<sums, true>(lane, i, count);
        } else {
          SumLane<sums, false>(lane, i, count);
        }
      };
      for (; i + kSums * kStep <= n_; i += kSums * kStep) {
        add(std::integral_constant<int, kSums>());
      }
      for (; i < n_; i += kLanes) add(std::integral_constant<int, kLanes / kStep>());
    }
  }

  // Coordinates [i, i + kSums * kStep) of one lane's rows below `count`.
  template <int kSums, bool kStarts>
  HWY_INLINE void SumLane(int64_t lane, int64_t i, int64_t count) const {
    const hn::CappedTag<double, kLanes> d;
    const hn::Rebind<float, decltype(d)> narrow;
    using V = hn::Vec<decltype(d)>;
    double* sums = lanes_ + lane * n_ + i;
    V sum[kSums];
    Unroll<kSums>([&](auto k) KVERN_INLINE_STEP {
      sum[k] = kStarts ? hn::Zero(d) : hn::Load(d, sums + k * kStep);
    });
    for (int64_t row = lane; row < count; row += kLanes) {
      const V factor = hn::Set(d, factors_[row]);
      const float* from = rows_.At(row) + i;
      Unroll<kSums>([&](auto k) KVERN_INLINE_STEP {
        const V x = hn::PromoteTo(d, hn::Load(narrow, from + k * kStep));
        sum[k] = hn::MulAdd(x, factor, sum[k]);
      });
    }
    Unroll<kSums>([&](auto k) KVERN_INLINE_STEP { hn::Store(sum[k], d, sums + k * kStep); });
  }

  HWY_INLINE void AddLanes(double* totals) const {
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
  }

  int64_t n_;
  TensorView<float, 2> rows_;  // [32, padded n]
  double* factors_;            // [32]
  double* lanes_;              // [16, padded n]
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
