// f32 lane dots (kernels/base/lanes.h) of a tile of tokens with many vectors. Tokens are the lanes
// of registers: a virtual lane of 16 is a register of its own, and its tree whole additions.
#if defined(KVERN_KERNELS_CPU_COLUMN_DOTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_COLUMN_DOTS_INL_H_
#undef KVERN_KERNELS_CPU_COLUMN_DOTS_INL_H_
#else
#define KVERN_KERNELS_CPU_COLUMN_DOTS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/base/lanes.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/unroll-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using ColumnTag = LaneTag<float>;
using ColumnVec = hn::Vec<ColumnTag>;
inline constexpr int kColumnLanes = hn::MaxLanes(ColumnTag());
static_assert(kColumnLanes >= 4, "every instruction set of targets.h holds four f32");

// Tokens of a tile: two registers of the widest.
inline constexpr int64_t kColumnTokens = 32;
static_assert(kTileTokens % kColumnTokens == 0);
constexpr int64_t PadToColumns(int64_t tokens) {
  return (tokens + kColumnTokens - 1) / kColumnTokens * kColumnTokens;
}

// How many vectors are multiplied at a time, most first: two registers of sums for each, two of
// keys and a factor fit in the registers there are, 16 with avx2 and 32 elsewhere.
inline constexpr int kPanelSizes[] = {kColumnLanes == 8 ? 6 : 12,
                                      kColumnLanes == 8 ? 5 : 9,
                                      kColumnLanes == 8 ? 4 : 8,
                                      kColumnLanes == 8 ? 3 : 4,
                                      2,
                                      1};
inline constexpr int kPanelSizeCount = sizeof(kPanelSizes) / sizeof(kPanelSizes[0]);

// What keys are multiplied as.
enum class KeyPower : uint8_t { kOne, kSquare };

// Vectors in panels of neighbours: [head_dim, size] each, so that a pass reads them in a line.
class VectorPanels {
 public:
  VectorPanels(Scratch& scratch, int64_t count, int64_t head_dim)
      : data_(scratch.Take<float>(count * head_dim)), count_(count), head_dim_(head_dim) {}

  int64_t count() const { return count_; }
  int64_t head_dim() const { return head_dim_; }
  // The panel that begins with vector `first`.
  HWY_INLINE const float* At(int64_t first) const { return data_ + first * head_dim_; }

  // Vector v, rounded. from: [head_dim].
  template <class T>
  void Fill(int64_t v, TensorView<const T, 1> from) const {
    int64_t first = 0;
    int64_t size = SizeAt(first);
    for (; first + size <= v; size = SizeAt(first)) first += size;
    float* to = data_ + first * head_dim_ + (v - first);
    for (int64_t i = 0; i < head_dim_; ++i) to[i * size] = static_cast<float>(from(i));
  }

 private:
  int64_t SizeAt(int64_t first) const {
    int64_t size = 1;
    for (const int fits : kPanelSizes) {
      if (fits <= count_ - first && fits > size) size = fits;
    }
    return size;
  }

  float* data_;
  int64_t count_;
  int64_t head_dim_;
};

// Work between the steps of another; Do(done, all) is called with shares that rise up to 1.
struct NothingMeanwhile {
  HWY_INLINE void Do(int64_t /*done*/, int64_t /*all*/) {}
};

// One panel with two registers of tokens.
template <int kSize, KeyPower power>
struct PanelPass {
  const float* columns;  // [head_dim, kColumnTokens], from the first of the two registers on
  const float* panel;    // [head_dim, kSize]
  int64_t head_dim;

  // dots [kSize, kColumnTokens], from the first of the two registers on. after_leaf() is
  // called for each leaf of the tree.
  template <class AfterLeaf>
  HWY_INLINE void Run(float* HWY_RESTRICT dots, const AfterLeaf& after_leaf) const {
    // The first step of the tree is taken on the way. The others wait for all pairs: taken as soon
    // as they can be, they would hang on branches that processors do not foresee.
    constexpr int kSums = 2 * kSize;
    constexpr int kPairs = kLanes / 2;
    HWY_ALIGN float lower[kSums * kColumnLanes];
    HWY_ALIGN float pairs[kPairs][kSums * kColumnLanes];
    const ColumnTag d;
    for (int leaf = 0; leaf < kLanes; ++leaf) {
      after_leaf();
      ColumnVec sum[kSums];
      SumLane(leaf / 2 + leaf % 2 * kPairs, sum);
      if (leaf % 2 == 0) {
        Unroll<kSums>([&](auto k)
                          KVERN_INLINE_STEP { hn::Store(sum[k], d, lower + k * kColumnLanes); });
      } else {
        Unroll<kSums>([&](auto k) KVERN_INLINE_STEP {
          const ColumnVec both = hn::Add(hn::Load(d, lower + k * kColumnLanes), sum[k]);
          hn::Store(both, d, pairs[leaf / 2] + k * kColumnLanes);
        });
      }
    }
    for (int k = 0; k < kSums; ++k) {
      const auto pair = [&](int i)
                            KVERN_INLINE_STEP { return hn::Load(d, pairs[i] + k * kColumnLanes); };
      const ColumnVec even = hn::Add(hn::Add(pair(0), pair(4)), hn::Add(pair(2), pair(6)));
      const ColumnVec odd = hn::Add(hn::Add(pair(1), pair(5)), hn::Add(pair(3), pair(7)));
      hn::Store(hn::Add(even, odd), d, dots + k / 2 * kColumnTokens + k % 2 * kColumnLanes);
    }
  }

 private:
  HWY_INLINE void SumLane(int64_t lane, ColumnVec (&sum)[2 * kSize]) const {
    const ColumnTag d;
    Unroll<2 * kSize>([&](auto k) KVERN_INLINE_STEP { sum[k] = hn::Zero(d); });
    for (int64_t i = lane; i < head_dim; i += kLanes) {
      ColumnVec x = hn::Load(d, columns + i * kColumnTokens);
      ColumnVec y = hn::Load(d, columns + i * kColumnTokens + kColumnLanes);
      if constexpr (power == KeyPower::kSquare) {
        x = hn::Mul(x, x);
        y = hn::Mul(y, y);
      }
      const float* HWY_RESTRICT factors = panel + i * kSize;
      Unroll<kSize>([&](auto k) KVERN_INLINE_STEP {
        const ColumnVec factor = hn::Set(d, factors[k]);
        sum[2 * k] = hn::MulAdd(x, factor, sum[2 * k]);
        sum[2 * k + 1] = hn::MulAdd(y, factor, sum[2 * k + 1]);
      });
    }
  }
};

// dots [vectors, kColumnTokens], aligned: of each token's key, or its squares, with each vector.
// columns: [head_dim, kColumnTokens], aligned.
template <KeyPower power, class Meanwhile>
HWY_INLINE void ColumnDots(const float* columns, const VectorPanels& vectors, float* dots,
                           Meanwhile& meanwhile) {
  constexpr int64_t kPassTokens = 2 * kColumnLanes;
  constexpr int64_t kPasses = kColumnTokens / kPassTokens;
  const int64_t all = vectors.count() * kPasses * kLanes;
  int64_t done = 0;
  int64_t first = 0;
  Unroll<kPanelSizeCount>([&](auto at) KVERN_INLINE_STEP {
    constexpr int kSize = kPanelSizes[at];
    for (; first + kSize <= vectors.count(); first += kSize) {
      for (int64_t token = 0; token < kColumnTokens; token += kPassTokens) {
        const PanelPass<kSize, power> pass = {columns + token, vectors.At(first),
                                              vectors.head_dim()};
        pass.Run(dots + first * kColumnTokens + token, [&]() KVERN_INLINE_STEP {
          done += kSize;
          meanwhile.Do(done, all);
        });
      }
    }
  });
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
