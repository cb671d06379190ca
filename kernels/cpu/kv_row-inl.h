// Rows between a cache and f32 buffers of whole 16-lane steps, for the instruction set in force.
#if defined(KVERN_KERNELS_CPU_KV_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_KV_ROW_INL_H_
#undef KVERN_KERNELS_CPU_KV_ROW_INL_H_
#else
#define KVERN_KERNELS_CPU_KV_ROW_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <limits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/base/kv_row.h"
#include "kernels/base/lanes.h"
#include "kernels/base/packed_layout.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Steps of 16 coordinates, and of the 8 that a head_dim may end with.
using RowTag = hn::CappedTag<float, 16>;
using TailTag = hn::CappedTag<float, 8>;

// Row buffers hold this many floats; those beyond head_dim are 0, which adds nothing to any lane.
inline int64_t PaddedDim(int64_t head_dim) { return AlignUp(head_dim, kLanes); }

template <class D>
HWY_INLINE hn::Vec<D> LoadAsFloat(D d, const float* from) {
  return hn::LoadU(d, from);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadAsFloat(D d, const BFloat16* from) {
  const hn::Rebind<uint16_t, D> narrow;
  const hn::Rebind<uint32_t, D> wide;
  const auto bits = hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(wide, bits)));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadAsFloat(D d, const Float16* from) {
  const hn::Rebind<hwy::float16_t, D> narrow;
  return hn::PromoteTo(d, hn::LoadU(narrow, reinterpret_cast<const hwy::float16_t*>(from)));
}

template <class D>
HWY_INLINE void StoreRounded(D d, hn::Vec<D> value, float* to) {
  hn::StoreU(value, d, to);
}
template <class D>
HWY_INLINE void StoreRounded(D /*d*/, hn::Vec<D> value, BFloat16* to) {
  const hn::Rebind<uint32_t, D> wide;
  const hn::Rebind<int32_t, D> wide_signed;
  const hn::Rebind<uint16_t, D> narrow;
  const auto bits = hn::BitCast(wide, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(wide, 1u));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(wide, 0x7FFFu)));
  const auto kept = hn::BitCast(wide_signed, hn::ShiftRight<16>(rounded));
  hn::StoreU(hn::DemoteTo(narrow, kept), narrow, reinterpret_cast<uint16_t*>(to));
}
template <class D>
HWY_INLINE void StoreRounded(D /*d*/, hn::Vec<D> value, Float16* to) {
  const hn::Rebind<hwy::float16_t, D> narrow;
  hn::StoreU(hn::DemoteTo(narrow, value), narrow, reinterpret_cast<hwy::float16_t*>(to));
}

// x [PaddedDim(n)] = from [n].
template <class T>
HWY_INLINE void LoadContiguous(const T* from, int64_t n, float* HWY_RESTRICT x) {
  const RowTag d;
  const TailTag tail;
  int64_t i = 0;
  for (; i + kLanes <= n; i += hn::Lanes(d)) hn::Store(LoadAsFloat(d, from + i), d, x + i);
  for (; i < n; i += hn::Lanes(tail)) hn::Store(LoadAsFloat(tail, from + i), tail, x + i);
  for (; i % kLanes != 0; i += hn::Lanes(tail)) hn::Store(hn::Zero(tail), tail, x + i);
}

// to [n] = x, every NaN the same one (as StoreKvRow).
template <class T>
HWY_INLINE void StoreContiguous(const float* HWY_RESTRICT x, int64_t n, T* to) {
  const auto store = [&](auto d, int64_t i) HWY_ATTR {
    const auto value = hn::Load(d, x + i);
    const auto nan = hn::Set(d, std::numeric_limits<float>::quiet_NaN());
    StoreRounded(d, hn::IfThenElse(hn::IsNaN(value), nan, value), to + i);
  };
  const RowTag d;
  const TailTag tail;
  int64_t i = 0;
  for (; i + kLanes <= n; i += hn::Lanes(d)) store(d, i);
  for (; i < n; i += hn::Lanes(tail)) store(tail, i);
}

// Blocks and kept rows lie anywhere: without a word nobody fetches them before they are asked for.
HWY_INLINE void PrefetchRow(const KvRef& ref, const std::byte* row) {
  constexpr int64_t kLineBytes = 64;
  if (!ref.HasContiguousRows()) return;
  const int64_t bytes = ref.head_dim * SizeOf(ref.dtype);
  for (int64_t at = 0; at < bytes; at += kLineBytes) hwy::Prefetch(row + at);
}
inline constexpr int64_t kRowsAhead = 8;  // of kept rows: what memory takes, in rows of work

// x [PaddedDim(head_dim)], 64-byte aligned.
inline void LoadRow(const KvRef& ref, const std::byte* row, float* HWY_RESTRICT x) {
  if (!ref.HasContiguousRows()) {
    LoadKvRow(ref, row, x);
    for (int64_t i = ref.head_dim; i < PaddedDim(ref.head_dim); ++i) x[i] = 0.0f;
    return;
  }
  VisitDType(ref.dtype, [&](auto tag) HWY_ATTR {
    using T = typename decltype(tag)::type;
    LoadContiguous(reinterpret_cast<const T*>(row), ref.head_dim, x);
  });
}

inline void StoreRow(const KvRef& ref, const float* HWY_RESTRICT x, std::byte* row) {
  if (!ref.HasContiguousRows()) {
    StoreKvRow(ref, x, row);
    return;
  }
  VisitDType(ref.dtype, [&](auto tag) HWY_ATTR {
    using T = typename decltype(tag)::type;
    StoreContiguous(x, ref.head_dim, reinterpret_cast<T*>(row));
  });
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // KVERN_KERNELS_CPU_KV_ROW_INL_H_
