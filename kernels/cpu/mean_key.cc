// Counted keys are un-rotated one by one and added coordinate by coordinate, tile after tile.
#include "kernels/cpu/mean_key.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/mean_key.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/coding.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/dim_sums-inl.h"
#include "kernels/cpu/head_runs.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/row_chunks-inl.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/unroll-inl.h"
#include "kernels/cpu/unrotated_chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Largest exponents seen of 16-bit elements; one of ones is infinity or NaN.
class Exponents {
 public:
  HWY_INLINE Exponents() : largest_(hn::Zero(Wide())), last_(hn::Zero(Narrow())) {}

  // row [n], n a multiple of 16.
  template <class T>
  HWY_INLINE void Add(const T* row, int64_t n) {
    const auto* bits = reinterpret_cast<const uint16_t*>(row);
    int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += static_cast<int64_t>(hn::MaxLanes(Wide()))) {
      largest_ = Larger(Wide(), bits + i, largest_);
    }
    for (; i < n; i += static_cast<int64_t>(hn::MaxLanes(Narrow()))) {
      last_ = Larger(Narrow(), bits + i, last_);
    }
  }
  template <class T>
  HWY_INLINE bool AreFinite() const {
    constexpr uint16_t kInfinity = std::is_same_v<T, BFloat16> ? 0x7F80 : 0x7C00;
    return hn::AllTrue(Wide(), hn::Lt(largest_, hn::Set(Wide(), kInfinity))) &&
           hn::AllTrue(Narrow(), hn::Lt(last_, hn::Set(Narrow(), kInfinity)));
  }

 private:
  using Wide = hn::CappedTag<uint16_t, 2 * kLanes>;
  using Narrow = hn::CappedTag<uint16_t, kLanes>;

  template <class D>
  static HWY_INLINE hn::Vec<D> Larger(D d, const uint16_t* bits, hn::Vec<D> largest) {
    return hn::Max(largest, hn::And(hn::LoadU(d, bits), hn::Set(d, uint16_t{0x7FFF})));
  }

  hn::Vec<Wide> largest_;
  hn::Vec<Narrow> last_;
};

// The rows of the chunk that are finite, of `n` elements each. Those past the last repeat it.
HWY_INLINE RowSet FiniteRows(const RowChunk<float>& chunk, int64_t n) {
  RowSet finite = 0;
  for (int64_t r = 0; r < kChunkTokens; ++r) finite |= RowSet{AllFinite(chunk.Row(r), n)} << r;
  return finite;
}
template <class T>
HWY_INLINE RowSet FiniteRows(const RowChunk<T>& chunk, int64_t n) {
  Exponents all;
  for (int64_t r = 0; r < kChunkTokens; ++r) all.Add(chunk.Row(r), n);
  if (HWY_LIKELY(all.AreFinite<T>())) return RowsBelow(kChunkTokens);
  RowSet finite = 0;
  for (int64_t r = 0; r < kChunkTokens; ++r) {
    Exponents of_row;
    of_row.Add(chunk.Row(r), n);
    finite |= RowSet{of_row.AreFinite<T>()} << r;
  }
  return finite;
}

// Sums of the heads of one run.
struct RunSums {
  int64_t first_head;
  NextAngles next_angles;
  DimSums tile;
  TensorView<double, 2> total;  // [heads, padded head_dim]
  int64_t* added;               // [heads]
};

template <class T>
HWY_INLINE void AddChunk(const MeanKeyArgs& args, const RowChunk<T>& chunk,
                         const KeyRotation& rotation, RunSums& sums) {
  const int64_t i = chunk.head() - sums.first_head;
  const TensorView<const uint8_t, 1> mask = {
      args.counted.At(rotation.layer, chunk.head(), chunk.first()),
      {chunk.count()},
      {args.counted.stride[2]}};
  const RowSet added = RowsIn(mask, chunk.count()) & FiniteRows(chunk, rotation.head_dim);
  UnrotateChunk(chunk, rotation, added, sums.tile.Rows(chunk.first()),
                [&](int64_t r) KVERN_INLINE_STEP {
                  chunk.Prefetch(r);
                  sums.next_angles.Prefetch(chunk, r);
                });
  sums.added[i] += hwy::PopCount(added);
  double* total = chunk.EndsTurn() ? sums.total.At(i) : nullptr;
  sums.tile.Advance(chunk.first() + chunk.count(), total);
}

absl::Status MeanKeyOfRun(const HeadRun& run, const MeanKeyArgs& args,
                          TensorView<Float16, 3> mean) {
  const KvRef& keys = args.keys[run.layer];
  const KeyRotation rotation = {args.rotation, run.layer, keys.head_dim};
  RowChunks chunks(run, keys, rotation.Read());
  RunSums sums = {
      run.first, NextAngles{rotation, run.first, run.count, keys, args.counted.shape[2]},
      DimSums(run.scratch, keys.head_dim), TakeTile<double>(run.scratch, run.count, keys.head_dim),
      run.scratch.Take<int64_t>(run.count)};
  KVERN_RETURN_IF_ERROR(run.scratch.Taken());
  sums.tile.FillFactors(1.0);
  std::fill(sums.total.data, sums.total.data + sums.total.Size(), 0.0);
  std::fill(sums.added, sums.added + run.count, 0);
  const auto add = [&](const auto& chunk) HWY_ATTR { AddChunk(args, chunk, rotation, sums); };
  KVERN_RETURN_IF_ERROR(chunks.ForEach(args.counted.shape[2], kTileTokens, add));
  for (int64_t i = 0; i < run.count; ++i) {
    for (int64_t d = 0; d < keys.head_dim; ++d) {
      mean(run.layer, run.first + i, d) = RoundedMean(sums.total(i, d), sums.added[i]);
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(MeanKeyOfRun);

absl::Status MeanKey(Runner& runner, const MeanKeyArgs& args, TensorView<Float16, 3> mean) {
  const int64_t heads = NearHeads(args.keys, mean.shape[1]);
  return ForEachHeadRun(runner, mean.shape, heads, [&](const HeadRun& run) {
    return HWY_DYNAMIC_DISPATCH(MeanKeyOfRun)(run, args, mean);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
