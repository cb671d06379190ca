// Dots of 16 keys with the vectors of triattention: u with the keys, w with the lengths of their
// bands. A key is widened once, its lengths are taken once, whatever the number of vectors.
#if defined(KVERN_KERNELS_CPU_BAND_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_BAND_DOTS_INL_H_
#undef KVERN_KERNELS_CPU_BAND_DOTS_INL_H_
#else
#define KVERN_KERNELS_CPU_BAND_DOTS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/backend.h"
#include "kernels/base/lanes.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/row_chunks-inl.h"
#include "kernels/cpu/tree_sums-inl.h"
#include "kernels/cpu/unroll-inl.h"
#include "kernels/cpu/widen-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors whose sums fit into registers beside those of other keys.
inline constexpr int kMostVectors = hn::MaxLanes(LaneTag<float>()) == kLanes ? 4 : 2;

// What the dots of a head's keys are made with. All rows aligned and padded to 16.
struct BandVectors {
  RopeLayout layout;
  int64_t bands;
  const float* reference;        // [2 * bands] subtracted from keys before u, not before w
  TensorView<const float, 2> u;  // [vectors, 2 * bands]
  TensorView<const float, 2> w;  // [query heads, bands]
};

// Dots of 16 keys.
struct BandDots {
  float* u;  // [vectors, 16]
  float* w;  // [query heads, 16]
};

// lanes [kVectors, 16, 16] of keys r, r + 1, ... of the chunk; those of w follow those of u.
template <int kKeys, int kVectors, class T>
HWY_INLINE void FusedLanes(const RowChunk<T>& chunk, int64_t r, const BandVectors& by,
                           float* HWY_RESTRICT lanes) {
  const LaneTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t bands = by.bands;
  for (int64_t at = 0; at < kLanes; at += static_cast<int64_t>(hn::MaxLanes(d))) {
    V sum[kKeys][kVectors], spread[kKeys][kVectors];
    Unroll<kKeys>([&](auto k) KVERN_INLINE_STEP {
      Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP { sum[k][v] = spread[k][v] = hn::Zero(d); });
    });
    // Vectors are loaded once for all keys: loads are what this loop has most of.
    V u[kVectors], w[kVectors];
    for (int64_t b = at; b < bands; b += kLanes) {
      const V reference = hn::Load(d, by.reference + b);
      Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP { u[v] = hn::Load(d, by.u.At(v) + b); });
      Unroll<kKeys>([&](auto k) KVERN_INLINE_STEP {
        const V x = hn::Sub(Widen(d, chunk.Row(r + k) + b), reference);
        Unroll<kVectors>([&](auto v)
                             KVERN_INLINE_STEP { sum[k][v] = hn::MulAdd(x, u[v], sum[k][v]); });
      });
    }
    for (int64_t b = at; b < bands; b += kLanes) {
      const V reference = hn::Load(d, by.reference + bands + b);
      Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP {
        u[v] = hn::Load(d, by.u.At(v) + bands + b);
        w[v] = hn::Load(d, by.w.At(v) + b);
      });
      Unroll<kKeys>([&](auto k) KVERN_INLINE_STEP {
        const V re = Widen(d, chunk.Row(r + k) + b);
        const V im = Widen(d, chunk.Row(r + k) + bands + b);
        const V length = hn::Sqrt(hn::MulAdd(re, re, hn::Mul(im, im)));
        const V x = hn::Sub(im, reference);
        Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP {
          sum[k][v] = hn::MulAdd(x, u[v], sum[k][v]);
          spread[k][v] = hn::MulAdd(length, w[v], spread[k][v]);
        });
      });
    }
    Unroll<kKeys>([&](auto k) KVERN_INLINE_STEP {
      Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP {
        float* to = lanes + (v * kChunkTokens + r + k) * kLanes + at;
        hn::Store(sum[k][v], d, to);
        hn::Store(spread[k][v], d, to + kVectors * kChunkTokens * kLanes);
      });
    });
  }
}

// One u and one w per query head, kVectors of them; bands in halves, and in whole steps of 16.
template <int kVectors, class T>
HWY_INLINE void FusedDots(const RowChunk<T>& chunk, const BandVectors& by, const BandDots& dots) {
  // Few keys at a time: requests to memory come two rows apart, not in bursts that it refuses.
  constexpr int kKeys = 2;
  HWY_ALIGN float lanes[2 * kVectors * kChunkTokens * kLanes];
  for (int64_t r = 0; r < kChunkTokens; r += kKeys) {
    Unroll<kKeys>([&](auto k) KVERN_INLINE_STEP { chunk.Prefetch(r + k); });
    FusedLanes<kKeys, kVectors>(chunk, r, by, lanes);
  }
  for (int v = 0; v < kVectors; ++v) {
    const float* of_u = lanes + v * kChunkTokens * kLanes;
    StoreTreeSums16(of_u, dots.u + v * kChunkTokens);
    StoreTreeSums16(of_u + kVectors * kChunkTokens * kLanes, dots.w + v * kChunkTokens);
  }
}

// Keys of one chunk in f32, for more vectors than registers hold.
struct WideKeys {
  TensorView<float, 2> centred;  // [16, padded 2 * bands] minus the reference
  TensorView<float, 2> lengths;  // [16, padded bands]
};

template <class T>
HWY_INLINE void CentreKey(const T* key, const BandVectors& by, float* HWY_RESTRICT centred) {
  const LaneTag<float> d;
  for (int64_t i = 0; i < 2 * by.bands; i += static_cast<int64_t>(hn::MaxLanes(d))) {
    hn::Store(hn::Sub(Widen(d, key + i), hn::Load(d, by.reference + i)), d, centred + i);
  }
}

template <class T>
HWY_INLINE void BandLengths(const T* key, const BandVectors& by, float* HWY_RESTRICT lengths) {
  const LaneTag<float> d;
  constexpr int64_t kStep = static_cast<int64_t>(hn::MaxLanes(d));
  for (int64_t b = 0; b < by.bands; b += kStep) {
    auto re = hn::Undefined(d);
    auto im = hn::Undefined(d);
    if (by.layout == RopeLayout::kHalf) {
      re = Widen(d, key + b);
      im = Widen(d, key + by.bands + b);
    } else {
      const auto low = Widen(d, key + 2 * b);
      const auto high = Widen(d, key + 2 * b + kStep);
      re = hn::ConcatEven(d, high, low);
      im = hn::ConcatOdd(d, high, low);
    }
    hn::Store(hn::Sqrt(hn::MulAdd(re, re, hn::Mul(im, im))), d, lengths + b);
  }
}

// Rows and vectors of one panel: their sums hide the latency of fma.
inline constexpr int kPanelKeys = 4;

// lanes [kVectors, 16, 16] of rows r, r + 1, ...: each a sum of row * vector.
template <int kVectors>
HWY_INLINE void PanelLanes(TensorView<const float, 2> rows, int64_t r,
                           TensorView<const float, 2> vectors, float* HWY_RESTRICT lanes) {
  const LaneTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t n = rows.shape[1];
  for (int64_t at = 0; at < kLanes; at += static_cast<int64_t>(hn::MaxLanes(d))) {
    V sum[kPanelKeys][kVectors];
    Unroll<kPanelKeys>([&](auto k) KVERN_INLINE_STEP {
      Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP { sum[k][v] = hn::Zero(d); });
    });
    const auto step = [&](int64_t i, auto add) KVERN_INLINE_STEP {
      V by[kVectors];
      Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP { by[v] = hn::Load(d, vectors.At(v) + i); });
      Unroll<kPanelKeys>([&](auto k) KVERN_INLINE_STEP {
        const V x = hn::Load(d, rows.At(r + k) + i);
        Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP { sum[k][v] = add(x, by[v], sum[k][v]); });
      });
    };
    int64_t i = at;
    for (; i - at + kLanes <= n; i += kLanes) {
      step(i, [](V x, V by, V sum) KVERN_INLINE_STEP { return hn::MulAdd(x, by, sum); });
    }
    if (i < n) {
      const auto present = Present(d, n - i);
      step(i, [&](V x, V by, V sum) KVERN_INLINE_STEP {
        return hn::IfThenElse(present, hn::MulAdd(x, by, sum), sum);
      });
    }
    Unroll<kPanelKeys>([&](auto k) KVERN_INLINE_STEP {
      Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP {
        hn::Store(sum[k][v], d, lanes + (v * kChunkTokens + r + k) * kLanes + at);
      });
    });
  }
}

// dots [kVectors, 16] = LaneDot(row, vector) of 16 rows.
template <int kVectors>
HWY_INLINE void VectorDots(TensorView<const float, 2> rows, TensorView<const float, 2> vectors,
                           float* HWY_RESTRICT dots) {
  HWY_ALIGN float lanes[kVectors * kChunkTokens * kLanes];
  for (int64_t r = 0; r < kChunkTokens; r += kPanelKeys) {
    PanelLanes<kVectors>(rows, r, vectors, lanes);
  }
  for (int v = 0; v < kVectors; ++v) {
    StoreTreeSums16(lanes + v * kChunkTokens * kLanes, dots + v * kChunkTokens);
  }
}

// dots [vectors, 16], dense.
HWY_INLINE void RowDots(TensorView<const float, 2> rows, TensorView<const float, 2> vectors,
                        float* HWY_RESTRICT dots) {
  int64_t left = vectors.shape[0];
  const auto advance = [&](int count) HWY_ATTR {
    vectors.data += count * vectors.stride[0];
    dots += count * kChunkTokens;
    left -= count;
  };
  for (; left >= kMostVectors; advance(kMostVectors)) {
    VectorDots<kMostVectors>(rows, vectors, dots);
  }
  if (left >= 2) {
    VectorDots<2>(rows, vectors, dots);
    advance(2);
  }
  if (left == 1) VectorDots<1>(rows, vectors, dots);
}

// Any number of vectors, bands of any layout and number.
template <class T>
HWY_INLINE void DotsOfWideKeys(const RowChunk<T>& chunk, const BandVectors& by,
                               const WideKeys& keys, const BandDots& dots) {
  for (int64_t r = 0; r < kChunkTokens; ++r) {
    chunk.Prefetch(r);
    CentreKey(chunk.Row(r), by, keys.centred.At(r));
    BandLengths(chunk.Row(r), by, keys.lengths.At(r));
  }
  const auto first = [](TensorView<float, 2> rows, int64_t n) HWY_ATTR {
    return TensorView<const float, 2>{rows.data, {rows.shape[0], n}, {rows.stride[0], 1}};
  };
  RowDots(first(keys.centred, 2 * by.bands), by.u, dots.u);
  RowDots(first(keys.lengths, by.bands), by.w, dots.w);
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
