// Lane dots (kernels/base/lanes.h) of a block of rows with a block of vectors.
#if defined(KVERN_KERNELS_CPU_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_DOTS_INL_H_
#undef KVERN_KERNELS_CPU_DOTS_INL_H_
#else
#define KVERN_KERNELS_CPU_DOTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/lanes.h"
#include "kernels/base/tensor_view.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Up to 16 virtual lanes in one register.
template <class T>
using LaneTag = hn::CappedTag<T, kLanes>;

inline constexpr int64_t kPanelRows = 8;

// The first `n` lanes. Those without an element keep their sum: adding 0 would turn -0 into +0.
template <class D>
HWY_INLINE hn::Mask<D> Present(D d, int64_t n) {
  return hn::FirstN(d, static_cast<size_t>(std::min<int64_t>(n, hn::MaxLanes(d))));
}

// Strides count elements and are multiples of 16: every row and vector is readable up to the next
// multiple, whatever lies there. `row_count` rows are readable up to a multiple of kPanelRows.
template <class T>
struct DotBlock {
  const T* rows;
  int64_t row_stride;
  int64_t row_count;
  const T* vectors;
  int64_t vector_stride;
  int64_t vector_count;
  int64_t n;  // elements of each dot
};

// The first two steps of the tree: 16 lanes to 4.
template <class T>
HWY_INLINE hn::Vec<hn::FixedTag<T, 4>> FourLanes(const T* HWY_RESTRICT lanes) {
  const hn::FixedTag<T, 4> d;
  return hn::Add(hn::Add(hn::Load(d, lanes), hn::Load(d, lanes + 8)),
                 hn::Add(hn::Load(d, lanes + 4), hn::Load(d, lanes + 12)));
}

template <class T>
inline constexpr bool kHasFourLanes = hn::MaxLanes(LaneTag<T>()) >= 4;

// TreeSum of one sum's lanes.
template <class T>
HWY_INLINE T LaneTreeSum(const T* HWY_RESTRICT lanes) {
  if constexpr (kHasFourLanes<T>) {
    HWY_ALIGN T four[4];
    hn::Store(FourLanes(lanes), hn::FixedTag<T, 4>(), four);
    return (four[0] + four[2]) + (four[1] + four[3]);
  } else {
    return TreeSum(lanes);
  }
}

// TreeSum of four sums whose lanes lie one after the other.
template <class T>
HWY_INLINE void StoreTreeSums(const T* HWY_RESTRICT lanes, T* HWY_RESTRICT out) {
  if constexpr (kHasFourLanes<T>) {
    const hn::FixedTag<T, 4> d;
    const auto a = FourLanes(lanes), b = FourLanes(lanes + kLanes);
    const auto c = FourLanes(lanes + 2 * kLanes), e = FourLanes(lanes + 3 * kLanes);
    const auto ab = hn::Add(hn::ConcatLowerLower(d, b, a), hn::ConcatUpperUpper(d, b, a));
    const auto ce = hn::Add(hn::ConcatLowerLower(d, e, c), hn::ConcatUpperUpper(d, e, c));
    hn::StoreU(hn::Add(hn::ConcatEven(d, ce, ab), hn::ConcatOdd(d, ce, ab)), d, out);
  } else {
    for (int i = 0; i < 4; ++i) out[i] = TreeSum(lanes + i * kLanes);
  }
}

// Eight running sums of one register each: 4 rows with two vectors, or 8 rows with one. Enough to
// hide the latency of fma, few enough to stay in registers.
template <bool kTwoVectors, class T>
struct DotPanel {
  using D = LaneTag<T>;
  using V = hn::Vec<D>;
  const T* row[kPanelRows];
  const T* u;
  const T* v;
  int64_t n;

  // lanes: [8 sums, 16].
  HWY_INLINE void Run(T* HWY_RESTRICT lanes) const {
    for (int part = 0; part < kLanes; part += static_cast<int>(hn::MaxLanes(D()))) {
      RunPart(part, lanes + part);
    }
  }

 private:
  HWY_INLINE void RunPart(int64_t part, T* HWY_RESTRICT lanes) const {
    const D d;
    V a0 = hn::Zero(d), a1 = a0, a2 = a0, a3 = a0;
    V b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    int64_t i = part;
    for (; i - part + kLanes <= n; i += kLanes) {
      const V x = hn::Load(d, u + i);
      const V y = kTwoVectors ? hn::Load(d, v + i) : x;
      const V r0 = hn::Load(d, row[0] + i), r1 = hn::Load(d, row[1] + i);
      const V r2 = hn::Load(d, row[2] + i), r3 = hn::Load(d, row[3] + i);
      a0 = hn::MulAdd(r0, x, a0);
      a1 = hn::MulAdd(r1, x, a1);
      a2 = hn::MulAdd(r2, x, a2);
      a3 = hn::MulAdd(r3, x, a3);
      b0 = hn::MulAdd(kTwoVectors ? r0 : hn::Load(d, row[4] + i), y, b0);
      b1 = hn::MulAdd(kTwoVectors ? r1 : hn::Load(d, row[5] + i), y, b1);
      b2 = hn::MulAdd(kTwoVectors ? r2 : hn::Load(d, row[6] + i), y, b2);
      b3 = hn::MulAdd(kTwoVectors ? r3 : hn::Load(d, row[7] + i), y, b3);
    }
    if (i < n) {
      const auto present = Present(d, n - i);
      const V x = hn::Load(d, u + i);
      const V y = kTwoVectors ? hn::Load(d, v + i) : x;
      const auto add = [&](int k, V by, V& sum) HWY_ATTR {
        const V r = hn::Load(d, row[k] + i);
        sum = hn::IfThenElse(present, hn::MulAdd(r, by, sum), sum);
      };
      constexpr int kSecond = kTwoVectors ? 0 : 4;
      add(0, x, a0), add(1, x, a1), add(2, x, a2), add(3, x, a3);
      add(kSecond, y, b0), add(kSecond + 1, y, b1);
      add(kSecond + 2, y, b2), add(kSecond + 3, y, b3);
    }
    hn::Store(a0, d, lanes), hn::Store(a1, d, lanes + kLanes);
    hn::Store(a2, d, lanes + 2 * kLanes), hn::Store(a3, d, lanes + 3 * kLanes);
    hn::Store(b0, d, lanes + 4 * kLanes), hn::Store(b1, d, lanes + 5 * kLanes);
    hn::Store(b2, d, lanes + 6 * kLanes), hn::Store(b3, d, lanes + 7 * kLanes);
  }
};

template <bool kTwoVectors, class T>
HWY_INLINE void RunDotPanel(const DotBlock<T>& block, int64_t first_row, int64_t vector,
                            TensorView<T, 2> out) {
  DotPanel<kTwoVectors, T> panel;
  for (int64_t r = 0; r < kPanelRows; ++r) {
    panel.row[r] = block.rows + (first_row + r) * block.row_stride;
  }
  panel.u = block.vectors + vector * block.vector_stride;
  panel.v = panel.u + (kTwoVectors ? block.vector_stride : 0);
  panel.n = block.n;
  HWY_ALIGN T lanes[kPanelRows * kLanes];
  panel.Run(lanes);
  StoreTreeSums(lanes, out.At(vector, first_row));
  StoreTreeSums(lanes + 4 * kLanes,
                kTwoVectors ? out.At(vector + 1, first_row) : out.At(vector, first_row + 4));
}

// out(vector, row) = LaneDot(row, vector). `out` has room for row_count up to a multiple of 8.
template <class T>
HWY_INLINE void LaneDots(const DotBlock<T>& block, TensorView<T, 2> out) {
  int64_t vector = 0;
  for (; vector + 2 <= block.vector_count; vector += 2) {
    for (int64_t row = 0; row < block.row_count; row += 4) {
      RunDotPanel</*kTwoVectors=*/true>(block, row, vector, out);
    }
  }
  for (int64_t row = 0; vector < block.vector_count && row < block.row_count; row += 8) {
    RunDotPanel</*kTwoVectors=*/false>(block, row, vector, out);
  }
}

// Loads elements of one type as lanes of another: f32 as f64 or each as itself.
template <class D>
HWY_INLINE hn::Vec<D> LoadWide(D d, const hn::TFromD<D>* from) {
  return hn::Load(d, from);
}
HWY_INLINE hn::Vec<LaneTag<double>> LoadWide(LaneTag<double> d, const float* from) {
  return hn::PromoteTo(d, hn::Load(hn::Rebind<float, LaneTag<double>>(), from));
}

// LaneDot(a, b, n) of one pair, in T; both aligned and readable up to a multiple of 16.
template <class T, class A, class B>
HWY_INLINE T LaneDotAs(const A* a, const B* b, int64_t n) {
  const LaneTag<T> d;
  HWY_ALIGN T lanes[kLanes];
  for (int64_t part = 0; part < kLanes; part += static_cast<int64_t>(hn::MaxLanes(d))) {
    auto sum = hn::Zero(d);
    int64_t i = part;
    for (; i - part + kLanes <= n; i += kLanes) {
      sum = hn::MulAdd(LoadWide(d, a + i), LoadWide(d, b + i), sum);
    }
    if (i < n) {
      const auto added = hn::MulAdd(LoadWide(d, a + i), LoadWide(d, b + i), sum);
      sum = hn::IfThenElse(Present(d, n - i), added, sum);
    }
    hn::Store(sum, d, lanes + part);
  }
  return LaneTreeSum(lanes);
}
template <class T>
HWY_INLINE T OneLaneDot(const T* a, const T* b, int64_t n) {
  return LaneDotAs<T>(a, b, n);
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
