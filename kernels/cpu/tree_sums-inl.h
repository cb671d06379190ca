// The lane trees (kernels/base/lanes.h) of 16 sums at once: halves of different sums share a
// register, so that no addition works on an empty lane.
#if defined(KVERN_KERNELS_CPU_TREE_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_TREE_SUMS_INL_H_
#undef KVERN_KERNELS_CPU_TREE_SUMS_INL_H_
#else
#define KVERN_KERNELS_CPU_TREE_SUMS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/lanes.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/unroll-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One sum's 16 lanes in one register: the steps of the tree that add whole registers.
template <class T, class D = LaneTag<T>>
HWY_INLINE hn::Vec<D> FoldToRegister(const T* HWY_RESTRICT lanes) {
  const D d;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(d));
  if constexpr (kStep == kLanes) {
    return hn::Load(d, lanes);
  } else if constexpr (kStep == kLanes / 2) {
    return hn::Add(hn::Load(d, lanes), hn::Load(d, lanes + kStep));
  } else {
    HWY_ALIGN T half[kLanes / 2];
    for (int i = 0; i < kLanes / 2; i += kStep) {
      hn::Store(hn::Add(hn::Load(d, lanes + i), hn::Load(d, lanes + i + kLanes / 2)), d, half + i);
    }
    if constexpr (kStep == kLanes / 4) {
      return hn::Add(hn::Load(d, half), hn::Load(d, half + kStep));
    } else {
      const auto even = hn::Add(hn::Load(d, half), hn::Load(d, half + 2 * kStep));
      return hn::Add(even, hn::Add(hn::Load(d, half + kStep), hn::Load(d, half + 3 * kStep)));
    }
  }
}

// As many sums as a register has blocks of 16 bytes, `stride` sums apart, each down to one block.
template <class T, class D = LaneTag<T>>
HWY_INLINE hn::Vec<D> FoldToBlocks(const T* HWY_RESTRICT lanes, int64_t stride) {
  const D d;
  constexpr int kBlocks = static_cast<int>(hn::MaxLanes(d) * sizeof(T) / 16);
  const auto sum = [&](int i)
                       KVERN_INLINE_STEP { return FoldToRegister(lanes + i * stride * kLanes); };
  if constexpr (kBlocks == 1) {
    return sum(0);
  } else {
    // b's halves change places: one of the two registers added is a blend, which every unit does.
    const auto halve = [&](hn::Vec<D> a, hn::Vec<D> b) KVERN_INLINE_STEP {
      return hn::Add(hn::ConcatUpperLower(d, b, a), hn::ConcatLowerUpper(d, b, a));
    };
    if constexpr (kBlocks == 2) {
      return halve(sum(0), sum(1));
    } else {
      static_assert(kBlocks == 4);
      const auto even = halve(sum(0), sum(2));
      const auto odd = halve(sum(1), sum(3));
      return hn::Add(hn::OddEvenBlocks(odd, even),
                     hn::SwapAdjacentBlocks(hn::OddEvenBlocks(even, odd)));
    }
  }
}

// out [16] = TreeSum of 16 sums whose lanes lie one after the other; all aligned.
template <class T>
HWY_INLINE void StoreTreeSums16(const T* HWY_RESTRICT lanes, T* HWY_RESTRICT out) {
  const LaneTag<T> d;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(d));
  constexpr int kPerBlock = 16 / sizeof(T);
  for (int first = 0; first < kLanes; first += kStep) {
    // Block b of `fold(c)` belongs to sum first + kPerBlock * b + c.
    const auto fold = [&](int c) KVERN_INLINE_STEP {
      return FoldToBlocks(lanes + (first + c) * kLanes, kPerBlock);
    };
    if constexpr (kPerBlock == 2) {
      const auto a = fold(0), b = fold(1);
      hn::Store(hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)), d,
                out + first);
    } else {
      const hn::Repartition<double, decltype(d)> pairs;
      const auto a = fold(0), b = fold(1), c = fold(2), e = fold(3);
      const auto ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
      const auto ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
      const auto x = hn::BitCast(pairs, ab), y = hn::BitCast(pairs, ce);
      hn::Store(hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, x, y)),
                        hn::BitCast(d, hn::InterleaveUpper(pairs, x, y))),
                d, out + first);
    }
  }
}

// out [16] = LaneDot(row, vector) of 16 rows and one vector; block.n is a multiple of 16, and rows,
// vector and out are aligned.
HWY_INLINE void StoreDots16(const DotBlock<float>& block, float* HWY_RESTRICT out) {
  constexpr int kTogether = 8;  // sums in flight hide the latency of fma
  const LaneTag<float> d;
  using V = hn::Vec<decltype(d)>;
  HWY_ALIGN float lanes[kLanes * kLanes];
  for (int r = 0; r < kLanes; r += kTogether) {
    const float* row = block.rows + r * block.row_stride;
    for (int64_t part = 0; part < kLanes; part += static_cast<int64_t>(hn::MaxLanes(d))) {
      V sum[kTogether];
      Unroll<kTogether>([&](auto k) KVERN_INLINE_STEP { sum[k] = hn::Zero(d); });
      for (int64_t i = part; i < block.n; i += kLanes) {
        const V by = hn::Load(d, block.vectors + i);
        Unroll<kTogether>([&](auto k) KVERN_INLINE_STEP {
          sum[k] = hn::MulAdd(hn::Load(d, row + k * block.row_stride + i), by, sum[k]);
        });
      }
      Unroll<kTogether>(
          [&](auto k) KVERN_INLINE_STEP { hn::Store(sum[k], d, lanes + (r + k) * kLanes + part); });
    }
  }
  StoreTreeSums16(lanes, out);
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
