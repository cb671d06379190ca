// The keys of one chunk in f32, before their rotation: widened and turned in one go.
#if defined(KVERN_KERNELS_CPU_UNROTATED_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_UNROTATED_CHUNK_INL_H_
#undef KVERN_KERNELS_CPU_UNROTATED_CHUNK_INL_H_
#else
#define KVERN_KERNELS_CPU_UNROTATED_CHUNK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/base/band_rotation.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/rotation-inl.h"
#include "kernels/cpu/row_chunks-inl.h"
#include "kernels/cpu/unroll-inl.h"
#include "kernels/cpu/widen-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// key [n], n a multiple of 16, to x, aligned.
template <class T>
HWY_INLINE void WidenSteps(const T* key, int64_t n, float* HWY_RESTRICT x) {
  const LaneTag<float> d;
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::MaxLanes(d))) {
    hn::Store(Widen(d, key + i), d, x + i);
  }
}

// Bands from `band` on, a register of them.
template <RopeLayout kLayout, class T>
HWY_INLINE void UnrotateStep(const RotationRow& angles, const T* key, int64_t band,
                             float* HWY_RESTRICT x) {
  const LaneTag<float> d;
  constexpr int64_t kStep = static_cast<int64_t>(hn::MaxLanes(d));
  hn::Vec<decltype(d)> real;
  hn::Vec<decltype(d)> imag;
  if constexpr (kLayout == RopeLayout::kHalf) {
    real = Widen(d, key + band);
    imag = Widen(d, key + angles.bands + band);
    TurnBands<Turn::kUnrotate>(d, angles, band, &real, &imag);
    hn::Store(real, d, x + band);
    hn::StoreU(imag, d, x + angles.bands + band);
  } else {
    const auto low = Widen(d, key + 2 * band);
    const auto high = Widen(d, key + 2 * band + kStep);
    real = hn::ConcatEven(d, high, low);
    imag = hn::ConcatOdd(d, high, low);
    TurnBands<Turn::kUnrotate>(d, angles, band, &real, &imag);
    hn::StoreInterleaved2(real, imag, d, x + 2 * band);
  }
}

// All bands, a multiple of 16.
template <RopeLayout kLayout, class T>
HWY_INLINE void UnrotateBands(const RotationRow& angles, const T* key, float* HWY_RESTRICT x) {
  constexpr int64_t kStep = static_cast<int64_t>(hn::MaxLanes(LaneTag<float>()));
  constexpr int64_t kTogether = 4 * kStep;  // short loops end in branches that are guessed wrong
  int64_t band = 0;
  for (; band + kTogether <= angles.bands; band += kTogether) {
    Unroll<4>([&](auto k)
                  KVERN_INLINE_STEP { UnrotateStep<kLayout>(angles, key, band + k * kStep, x); });
  }
  for (; band < angles.bands; band += kStep) UnrotateStep<kLayout>(angles, key, band, x);
}

// What is to be undone in the keys of one layer.
struct KeyRotation {
  const RotationTable* table;  // null: nothing
  int64_t layer;
  int64_t head_dim;

  // How rows must come for UnrotateChunk.
  ChunkRead Read() const {
    const bool whole_bands = table == nullptr || table->bands % kLanes == 0;
    return whole_bands ? ReadInSteps(head_dim) : ChunkRead::kWidened;
  }
};

// Asks memory for the angles of the next tile while the heads of a run are at this one, each for
// its share: they are read from memory once, and from cache by the heads that follow.
struct NextAngles {
  const KeyRotation& rotation;
  int64_t first_head;
  int64_t heads;  // of the run
  const KvRef& keys;
  int64_t row_tokens;  // of the op

  // What is due at row r of the chunk.
  template <class T>
  HWY_INLINE void Prefetch(const RowChunk<T>& chunk, int64_t r) const {
    if (rotation.table == nullptr) return;
    const RotationTable& table = *rotation.table;
    const int64_t share = kTileTokens / std::min(heads, kTileTokens);
    const int64_t in_tile = chunk.first() % kTileTokens + r;
    const int64_t next = chunk.first() - chunk.first() % kTileTokens + kTileTokens +
                         (chunk.head() - first_head) % kTileTokens * share;
    const int64_t tokens = TokensOf(keys, chunk.head(), row_tokens);
    const int64_t end = std::min(next + share * (in_tile + 1) / kTileTokens, tokens);
    for (int64_t at = next + share * in_tile / kTileTokens; at < end; ++at) {
      const RotationRow row = RowOf(table, table.Row(rotation.layer, chunk.head(), at));
      for (int64_t band = 0; band < row.bands; band += kLanes) {
        hwy::Prefetch(row.cosine + band);
        hwy::Prefetch(row.sine + band);
      }
    }
  }
};

// Rows of a chunk, one bit each.
using RowSet = uint32_t;
static_assert(kChunkTokens <= 32);

HWY_INLINE RowSet RowsBelow(int64_t count) {
  return static_cast<RowSet>((uint64_t{1} << count) - 1);
}

// The rows below `count` whose byte of a mask is set.
HWY_INLINE RowSet RowsIn(TensorView<const uint8_t, 1> mask, int64_t count) {
  RowSet rows = 0;
  for (int64_t r = 0; r < count; ++r) rows |= RowSet{mask(r) != 0} << r;
  return rows;
}

// turn(angles, key, x) for each row in `wanted`, the others become 0.
template <class T, class Meanwhile, class TurnOne>
HWY_INLINE void TurnRows(const RowChunk<T>& chunk, const KeyRotation& rotation, RowSet wanted,
                         TensorView<float, 2> x, const Meanwhile& meanwhile, const TurnOne& turn) {
  const RotationTable& table = *rotation.table;
  const int32_t* rows = table.row_of_slot.data() + rotation.layer * table.layer_stride +
                        chunk.head() * table.head_stride + chunk.first();
  for (int64_t r = 0; r < kChunkTokens; ++r) {
    meanwhile(r);
    if ((wanted >> r & 1) == 0) {
      std::fill_n(x.At(r), x.shape[1], 0.0f);
      continue;
    }
    turn(RowOf(table, rows[r]), chunk.Row(r), x.At(r));
  }
}

// Keys of the chunk in `wanted`, all below its count, to x [16, padded head_dim], aligned; the
// other rows become 0. meanwhile(r) is called for each of the 16.
template <class T, class Meanwhile>
HWY_INLINE void UnrotateChunk(const RowChunk<T>& chunk, const KeyRotation& rotation, RowSet wanted,
                              TensorView<float, 2> x, const Meanwhile& meanwhile) {
  const int64_t n = x.shape[1];
  if (rotation.table == nullptr) {
    for (int64_t r = 0; r < kChunkTokens; ++r) {
      meanwhile(r);
      WidenSteps(chunk.Row(r), n, x.At(r));
      if ((wanted >> r & 1) == 0) std::fill_n(x.At(r), n, 0.0f);
    }
    return;
  }
  const RotationTable& table = *rotation.table;
  const int64_t turned = 2 * int64_t{table.bands};
  const auto whole_steps = [&](auto layout) KVERN_INLINE_STEP {
    TurnRows(chunk, rotation, wanted, x, meanwhile,
             [&](const RotationRow& angles, const T* key, float* to) KVERN_INLINE_STEP {
               UnrotateBands<layout>(angles, key, to);
               WidenSteps(key + turned, n - turned, to + turned);
             });
  };
  if (table.bands % kLanes != 0) {
    TurnRows(chunk, rotation, wanted, x, meanwhile,
             [&](const RotationRow& angles, const T* key, float* to) KVERN_INLINE_STEP {
               WidenSteps(key, n, to);
               TurnRow<Turn::kUnrotate>(angles, to);
             });
  } else if (table.layout == RopeLayout::kHalf) {
    whole_steps(std::integral_constant<RopeLayout, RopeLayout::kHalf>());
  } else {
    whole_steps(std::integral_constant<RopeLayout, RopeLayout::kInterleaved>());
  }
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
