// Reads rows of keys or values into a small tile of f32, whatever their dtype and strides.
#if defined(KVERN_KERNELS_CPU_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_ROWS_INL_H_
#undef KVERN_KERNELS_CPU_ROWS_INL_H_
#else
#define KVERN_KERNELS_CPU_ROWS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "kernels/base/kv_ref.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/kv_row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// `count` rows of one block from `from` on; those from `next` on (null: none) are read soon.
template <class T>
HWY_INLINE void LoadRun(const KvRef& ref, const std::byte* from, const std::byte* next,
                        int64_t count, TensorView<float, 2> tile) {
  if (ref.HasContiguousRows()) {
    for (int64_t r = 0; r < count; ++r) {
      if (next != nullptr) PrefetchRow(ref, next + r * ref.strides.token);
      const auto* row = reinterpret_cast<const T*>(from + r * ref.strides.token);
      LoadContiguous(row, ref.head_dim, tile.At(r));
    }
    return;
  }
  // Columns: neighbouring tokens lie closer than neighbouring coordinates.
  for (int64_t i = 0; i < ref.head_dim; ++i) {
    for (int64_t r = 0; r < count; ++r) {
      T value;
      std::memcpy(&value, from + i * ref.strides.dim + r * ref.strides.token, sizeof(value));
      tile(r, i) = ToFloat(value);
    }
  }
}

// Row r of `tile` = token first + r, widened exactly; blocks are read in place. Columns beyond
// head_dim are zeroed or left alone.
HWY_INLINE void LoadRows(const KvRef& ref, int64_t head, int64_t first, TensorView<float, 2> tile) {
  int64_t done = 0;
  while (done < tile.shape[0]) {
    const int64_t token = first + done;
    const int64_t in_block = ref.block_tokens - token % ref.block_tokens;
    const int64_t count = std::min(tile.shape[0] - done, in_block);
    TensorView<float, 2> part = tile;
    part.data = tile.At(done);
    // Inside a block the processor sees by itself what comes.
    const bool block_ends = count == in_block && token + 2 * count <= ref.Length(head);
    const std::byte* next = block_ends ? ref.Address(head, token + count) : nullptr;
    VisitDType(ref.dtype, [&](auto tag) HWY_ATTR {
      using T = typename decltype(tag)::type;
      LoadRun<T>(ref, ref.Address(head, token), next, count, part);
    });
    done += count;
  }
}

HWY_INLINE bool AllFinite(const float* HWY_RESTRICT row, int64_t n) {
  const hn::CappedTag<float, 8> d;
  const int64_t step = static_cast<int64_t>(hn::MaxLanes(d));
  const auto largest = hn::Set(d, std::numeric_limits<float>::max());
  auto finite = hn::Eq(largest, largest);
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    finite = hn::And(finite, hn::Le(hn::Abs(hn::LoadU(d, row + i)), largest));
  }
  bool all = hn::AllTrue(d, finite);
  for (; i < n; ++i) all = all && std::isfinite(row[i]);
  return all;
}

// |row| of tokens, through `tile` [kChunkTokens, padded head_dim].
struct NormReader {
  const KvRef& ref;
  int64_t head;
  TensorView<float, 2> tile;

  // [count] tokens from `first` on; NaN beyond the length of the head.
  HWY_INLINE void Read(int64_t first, int64_t count, float* norms) const {
    const int64_t held = std::clamp<int64_t>(ref.Length(head) - first, 0, count);
    TensorView<float, 2> part = tile;
    part.shape[0] = held;
    LoadRows(ref, head, first, part);
    for (int64_t r = 0; r < held; ++r) {
      const float* row = part.At(r);
      norms[r] = std::sqrt(OneLaneDot(row, row, ref.head_dim));
    }
    for (int64_t r = held; r < count; ++r) norms[r] = kNoScore;
  }
};

// A tile of one chunk. Null data when scratch ran out: Taken says so.
template <class T>
TensorView<T, 2> TakeTile(Scratch& scratch, int64_t rows, int64_t n) {
  return DenseView(scratch.Take<T>(rows * PadToLanes(n)), rows, PadToLanes(n));
}
template <class T>
TensorView<T, 2> FirstRows(TensorView<T, 2> tile, int64_t rows) {
  tile.shape[0] = rows;
  return tile;
}

// Strided [n] to a padded row; the padding becomes 0.
template <class T>
void CopyVector(TensorView<const T, 1> from, T* to) {
  for (int64_t i = 0; i < from.shape[0]; ++i) to[i] = from(i);
  std::fill(to + from.shape[0], to + PadToLanes(from.shape[0]), T{0});
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
