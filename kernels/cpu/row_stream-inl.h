// Rows in order for kernels that compute much per row: while one chunk is worked on, the next is
// fetched a few rows at a time. Fetching it all at once would wait for the memory it asks for.
#if defined(KVERN_KERNELS_CPU_ROW_STREAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_ROW_STREAM_INL_H_
#undef KVERN_KERNELS_CPU_ROW_STREAM_INL_H_
#else
#define KVERN_KERNELS_CPU_ROW_STREAM_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/kv_ref.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/skinny_dots-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One head of keys or values.
struct RowStream {
  const KvRef& ref;
  int64_t head;

  // Whole registers of neighbouring coordinates: what the readers below need.
  bool IsPlain() const { return ref.HasContiguousRows() && ref.head_dim % kLanes == 0; }

  // Fetches the share of step `step` of `steps` of the chunk from token `first` on.
  HWY_INLINE void Fetch(int64_t first, int64_t step, int64_t steps) const {
    const int64_t count = std::clamp<int64_t>(ref.Length(head) - first, 0, kChunkTokens);
    for (int64_t r = count * step / steps; r < count * (step + 1) / steps; ++r) {
      PrefetchRow(ref, ref.Address(head, first + r));
    }
  }

  // row r of `tile` = token first + r minus `reference`. IsPlain.
  HWY_INLINE void Read(int64_t first, const float* HWY_RESTRICT reference,
                       TensorView<float, 2> tile) const {
    VisitDType(ref.dtype, [&](auto tag) HWY_ATTR {
      using T = typename decltype(tag)::type;
      const LaneTag<float> d;
      for (int64_t r = 0; r < tile.shape[0]; ++r) {
        const auto* row = reinterpret_cast<const T*>(ref.Address(head, first + r));
        float* HWY_RESTRICT to = tile.At(r);
        for (int64_t i = 0; i < ref.head_dim; i += kSkinnyLanes) {
          hn::Store(hn::Sub(LoadAsFloat(d, row + i), hn::Load(d, reference + i)), d, to + i);
        }
      }
    });
  }

  // |row| of the kChunkTokens tokens from `first` on, all of which are held. IsPlain.
  HWY_INLINE void ReadNorms(int64_t first, float* HWY_RESTRICT norms) const {
    VisitDType(ref.dtype, [&](auto tag) HWY_ATTR {
      using T = typename decltype(tag)::type;
      const SkinnyTag d;
      constexpr int64_t kRows = kQuad * kSkinnyVectors;
      for (int64_t done = 0; done < kChunkTokens; done += kRows) {
        const T* rows[kRows];
        for (int64_t r = 0; r < kRows; ++r) {
          rows[r] = reinterpret_cast<const T*>(ref.Address(head, first + done + r));
        }
        const auto part = [&](int64_t lane) HWY_ATTR { return SquareSums(rows, lane); };
        hn::Store(hn::Sqrt(DotsOfBlock(SumParts(part))), d, norms + done);
      }
    });
  }

 private:
  template <class T>
  HWY_INLINE VectorSums SquareSums(const T* const* rows, int64_t part) const {
    Quad v0 = ZeroQuad(), v1 = v0, v2 = v0, v3 = v0;
    for (int64_t i = part; i < ref.head_dim; i += kLanes) {
      AddSquares(rows, i, v0);
      if (kSkinnyVectors > 1) AddSquares(rows + kQuad, i, v1);
      if (kSkinnyVectors > 2) AddSquares(rows + 2 * kQuad, i, v2);
      if (kSkinnyVectors > 3) AddSquares(rows + 3 * kQuad, i, v3);
    }
    return {v0, v1, v2, v3};
  }
  template <class T>
  HWY_INLINE void AddSquares(const T* const* rows, int64_t i, Quad& sums) const {
    const SkinnyTag d;
    const SkinnyVec x0 = LoadAsFloat(d, rows[0] + i), x1 = LoadAsFloat(d, rows[1] + i);
    const SkinnyVec x2 = LoadAsFloat(d, rows[2] + i), x3 = LoadAsFloat(d, rows[3] + i);
    sums.r0 = hn::MulAdd(x0, x0, sums.r0);
    sums.r1 = hn::MulAdd(x1, x1, sums.r1);
    sums.r2 = hn::MulAdd(x2, x2, sums.r2);
    sums.r3 = hn::MulAdd(x3, x3, sums.r3);
  }
};

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
