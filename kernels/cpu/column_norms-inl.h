// Norms of rows where they lie, as many at a time as a register has lanes: their trees are one.
#if defined(KVERN_KERNELS_CPU_COLUMN_NORMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_COLUMN_NORMS_INL_H_
#undef KVERN_KERNELS_CPU_COLUMN_NORMS_INL_H_
#else
#define KVERN_KERNELS_CPU_COLUMN_NORMS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/cpu/columns-inl.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/unroll-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Squares of rows of T: a register of the 16 virtual lanes for each, from lane `part` on.
template <class T>
HWY_INLINE void SumSquares(const ColumnSource& from, int64_t token, int64_t part,
                           ColumnSquare& sum) {
  const ColumnTag d;
  Unroll<kColumnLanes>([&](auto r) KVERN_INLINE_STEP { sum[r] = hn::Zero(d); });
  for (int64_t i = part; i < from.n; i += kLanes) {
    Unroll<kColumnLanes>([&](auto r) KVERN_INLINE_STEP {
      const ColumnVec x = LoadAsFloat(d, reinterpret_cast<const T*>(from.rows[token + r]) + i);
      sum[r] = hn::MulAdd(x, x, sum[r]);
    });
  }
}

// norms [kColumnTokens], aligned, of rows of T; the reference is not read.
template <class T>
HWY_INLINE void ColumnNorms(const ColumnSource& from, float* HWY_RESTRICT norms) {
  const ColumnTag d;
  const auto add = [&](ColumnSquare& sum, const ColumnSquare& other) KVERN_INLINE_STEP {
    Unroll<kColumnLanes>([&](auto r) KVERN_INLINE_STEP { sum[r] = hn::Add(sum[r], other[r]); });
  };
  for (int64_t token = 0; token < kColumnTokens; token += kColumnLanes) {
    ColumnSquare sum;
    SumSquares<T>(from, token, 0, sum);
    // Steps of the tree that add whole registers.
    if constexpr (kColumnLanes < kLanes) {
      ColumnSquare upper;
      SumSquares<T>(from, token, kLanes / 2, upper);
      add(sum, upper);
    }
    if constexpr (kColumnLanes < kLanes / 2) {
      ColumnSquare odd, upper;
      SumSquares<T>(from, token, kLanes / 4, odd);
      SumSquares<T>(from, token, 3 * kLanes / 4, upper);
      add(odd, upper);
      add(sum, odd);
    }
    TransposeSquare(sum);
    for (int half = kColumnLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sum[i] = hn::Add(sum[i], sum[i + half]);
    }
    hn::Store(hn::Sqrt(sum[0]), d, norms + token);
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
