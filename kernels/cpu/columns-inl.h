// Rows of 32 tokens to columns: coordinate by coordinate, the tokens side by side.
#if defined(KVERN_KERNELS_CPU_COLUMNS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_COLUMNS_INL_H_
#undef KVERN_KERNELS_CPU_COLUMNS_INL_H_
#else
#define KVERN_KERNELS_CPU_COLUMNS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/cpu/column_dots-inl.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/unroll-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using ColumnSquare = ColumnVec[kColumnLanes];

// Transposes each block of 4 x 4: block b of row 4 q + c = coordinate 4 b + c of rows 4 q to 4 q
// + 3.
HWY_INLINE void TransposeBlocks(ColumnSquare& x) {
  const ColumnTag d;
  const hn::Repartition<double, ColumnTag> pairs;
  const auto pair = [&](ColumnVec v) KVERN_INLINE_STEP { return hn::BitCast(pairs, v); };
  Unroll<kColumnLanes / 4>([&](auto q) KVERN_INLINE_STEP {
    ColumnVec* row = x + 4 * q;
    const auto low = pair(hn::InterleaveLower(d, row[0], row[1]));
    const auto high = pair(hn::InterleaveUpper(d, row[0], row[1]));
    const auto next_low = pair(hn::InterleaveLower(d, row[2], row[3]));
    const auto next_high = pair(hn::InterleaveUpper(d, row[2], row[3]));
    row[0] = hn::BitCast(d, hn::InterleaveLower(pairs, low, next_low));
    row[1] = hn::BitCast(d, hn::InterleaveUpper(pairs, low, next_low));
    row[2] = hn::BitCast(d, hn::InterleaveLower(pairs, high, next_high));
    row[3] = hn::BitCast(d, hn::InterleaveUpper(pairs, high, next_high));
  });
}

// x[i] lane r = x[r] lane i.
HWY_INLINE void TransposeSquare(ColumnSquare& x) {
  const ColumnTag d;
  TransposeBlocks(x);
  if constexpr (kColumnLanes == 8) {
    Unroll<4>([&](auto c) KVERN_INLINE_STEP {
      const ColumnVec low = x[c], high = x[4 + c];
      x[c] = hn::ConcatLowerLower(d, high, low);
      x[4 + c] = hn::ConcatUpperUpper(d, high, low);
    });
  } else if constexpr (kColumnLanes == 16) {
    Unroll<4>([&](auto c) KVERN_INLINE_STEP {
      const ColumnVec even_low = hn::ConcatLowerLower(d, x[8 + c], x[c]);
      const ColumnVec even_high = hn::ConcatUpperUpper(d, x[8 + c], x[c]);
      const ColumnVec odd_low = hn::ConcatLowerLower(d, x[12 + c], x[4 + c]);
      const ColumnVec odd_high = hn::ConcatUpperUpper(d, x[12 + c], x[4 + c]);
      x[c] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(odd_low), even_low);
      x[4 + c] = hn::OddEvenBlocks(odd_low, hn::SwapAdjacentBlocks(even_low));
      x[8 + c] = hn::OddEvenBlocks(hn::SwapAdjacentBlocks(odd_high), even_high);
      x[12 + c] = hn::OddEvenBlocks(odd_high, hn::SwapAdjacentBlocks(even_high));
    });
  }
}

// Where the rows of a tile lie, and what is taken off them.
struct ColumnSource {
  int64_t n;               // coordinates, a multiple of 16
  const float* reference;  // [n]
  const std::byte* rows[kColumnTokens];
};

// columns [n, kColumnTokens] = key minus reference, a register of coordinates at a time.
template <class T>
HWY_INLINE void WriteColumns(const ColumnSource& from, float* HWY_RESTRICT columns) {
  const ColumnTag d;
  for (int64_t token = 0; token < kColumnTokens; token += kColumnLanes) {
    for (int64_t i = 0; i < from.n; i += kColumnLanes) {
      ColumnSquare x;
      Unroll<kColumnLanes>([&](auto r) KVERN_INLINE_STEP {
        x[r] = LoadAsFloat(d, reinterpret_cast<const T*>(from.rows[token + r]) + i);
      });
      TransposeSquare(x);
      Unroll<kColumnLanes>([&](auto c) KVERN_INLINE_STEP {
        const ColumnVec centred = hn::Sub(x[c], hn::Set(d, from.reference[i + c]));
        hn::Store(centred, d, columns + (i + c) * kColumnTokens + token);
      });
    }
  }
}

// The same for bf16, two coordinates to an element while they are turned; n is a multiple of two
// registers.
HWY_INLINE void WritePairedColumns(const ColumnSource& from, float* HWY_RESTRICT columns) {
  const ColumnTag d;
  const hn::RebindToUnsigned<ColumnTag> words;
  for (int64_t token = 0; token < kColumnTokens; token += kColumnLanes) {
    for (int64_t i = 0; i < from.n; i += 2 * kColumnLanes) {
      ColumnSquare x;
      Unroll<kColumnLanes>([&](auto r) KVERN_INLINE_STEP {
        const std::byte* row = from.rows[token + r] + i * sizeof(BFloat16);
        x[r] = hn::BitCast(d, hn::LoadU(words, reinterpret_cast<const uint32_t*>(row)));
      });
      TransposeSquare(x);
      Unroll<kColumnLanes>([&](auto c) KVERN_INLINE_STEP {
        const auto bits = hn::BitCast(words, x[c]);
        const ColumnVec even = hn::BitCast(d, hn::ShiftLeft<16>(bits));
        const ColumnVec odd = hn::BitCast(d, hn::And(bits, hn::Set(words, 0xFFFF0000u)));
        const float* reference = from.reference + i + 2 * c;
        float* to = columns + (i + 2 * c) * kColumnTokens + token;
        hn::Store(hn::Sub(even, hn::Set(d, reference[0])), d, to);
        hn::Store(hn::Sub(odd, hn::Set(d, reference[1])), d, to + kColumnTokens);
      });
    }
  }
}

// columns [n, kColumnTokens], aligned, of rows of T.
template <class T>
HWY_INLINE void FillColumns(const ColumnSource& from, float* columns) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (from.n % (2 * kColumnLanes) == 0) return WritePairedColumns(from, columns);
  }
  WriteColumns<T>(from, columns);
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
