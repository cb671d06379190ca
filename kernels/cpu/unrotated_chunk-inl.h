// The keys of one chunk in f32, before their rotation: widened and turned in one go.
#if defined(KVERN_KERNELS_CPU_UNROTATED_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_UNROTATED_CHUNK_INL_H_
#undef KVERN_KERNELS_CPU_UNROTATED_CHUNK_INL_H_
#else
#define KVERN_KERNELS_CPU_UNROTATED_CHUNK_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/band_rotation.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/rotation-inl.h"
#include "kernels/cpu/row_chunks-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// key [n], n a multiple of 16, to x, aligned.
template <class T>
HWY_INLINE void WidenSteps(const T* key, int64_t n, float* HWY_RESTRICT x) {
  const LaneTag<float> d;
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::MaxLanes(d))) {
    hn::Store(LoadAsFloat(d, key + i), d, x + i);
  }
}

// UnrotateRow of key [n] to x; n and the bands are multiples of 16.
template <class T>
HWY_INLINE void UnrotateSteps(const RotationRow& angles, const T* key, int64_t n,
                              float* HWY_RESTRICT x) {
  const LaneTag<float> d;
  const int64_t step = static_cast<int64_t>(hn::MaxLanes(d));
  hn::Vec<decltype(d)> real;
  hn::Vec<decltype(d)> imag;
  for (int64_t band = 0; band < angles.bands; band += step) {
    if (angles.layout == RopeLayout::kHalf) {
      real = LoadAsFloat(d, key + band);
      imag = LoadAsFloat(d, key + angles.bands + band);
      TurnBands<Turn::kUnrotate>(d, angles, band, &real, &imag);
      hn::Store(real, d, x + band);
      hn::StoreU(imag, d, x + angles.bands + band);
    } else {
      const auto low = LoadAsFloat(d, key + 2 * band);
      const auto high = LoadAsFloat(d, key + 2 * band + step);
      real = hn::ConcatEven(d, high, low);
      imag = hn::ConcatOdd(d, high, low);
      TurnBands<Turn::kUnrotate>(d, angles, band, &real, &imag);
      hn::StoreInterleaved2(real, imag, d, x + 2 * band);
    }
  }
  const int64_t turned = 2 * int64_t{angles.bands};
  WidenSteps(key + turned, n - turned, x + turned);
}

// What is to be undone in the keys of one layer.
struct KeyRotation {
  const RotationTable* table;  // null: nothing
  int64_t layer;
  int64_t head_dim;

  // How rows must come for UnrotateKey.
  ChunkRead Read() const {
    const bool whole_bands = table == nullptr || table->bands % kLanes == 0;
    return whole_bands ? ReadInSteps(head_dim) : ChunkRead::kWidened;
  }
};

// One key of the chunk to x [padded head_dim], aligned.
template <class T>
HWY_INLINE void UnrotateKey(const RowChunk<T>& chunk, int64_t r, const KeyRotation& rotation,
                            float* HWY_RESTRICT x) {
  const int64_t padded = PadToLanes(rotation.head_dim);
  if (rotation.table == nullptr) {
    WidenSteps(chunk.Row(r), padded, x);
    return;
  }
  const RotationTable& table = *rotation.table;
  const RotationRow angles =
      RowOf(table, table.Row(rotation.layer, chunk.head(), chunk.first() + r));
  if (angles.bands % kLanes == 0) {
    UnrotateSteps(angles, chunk.Row(r), padded, x);
    return;
  }
  WidenSteps(chunk.Row(r), padded, x);
  TurnRow<Turn::kUnrotate>(angles, x);
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
