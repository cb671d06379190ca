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
#include "kernels/cpu/unrotated_chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// row [n] as it lies; a 16-bit exponent of ones is infinity or NaN.
HWY_INLINE bool IsFiniteRow(const float* row, int64_t n) { return AllFinite(row, n); }
template <class T>
HWY_INLINE bool IsFiniteRow(const T* row, int64_t n) {
  const hn::CappedTag<uint16_t, kLanes> d;
  constexpr uint16_t kInfinity = std::is_same_v<T, BFloat16> ? 0x7F80 : 0x7C00;
  const auto magnitude = hn::Set(d, uint16_t{0x7FFF});
  auto largest = hn::Zero(d);
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::MaxLanes(d))) {
    const auto bits = hn::LoadU(d, reinterpret_cast<const uint16_t*>(row) + i);
    largest = hn::Max(largest, hn::And(bits, magnitude));
  }
  return hn::AllTrue(d, hn::Lt(largest, hn::Set(d, kInfinity)));
}

// Sums of the heads of one run.
struct RunSums {
  int64_t first_head;
  DimSums tile;
  float* key;                   // [padded head_dim]
  TensorView<double, 2> total;  // [heads, padded head_dim]
  int64_t* added;               // [heads]
};

template <class T>
HWY_INLINE void AddChunk(const MeanKeyArgs& args, const RowChunk<T>& chunk,
                         const KeyRotation& rotation, RunSums& sums) {
  const int64_t i = chunk.head() - sums.first_head;
  for (int64_t r = 0; r < kChunkTokens; ++r) {
    chunk.Prefetch(r);
    if (r >= chunk.count() || args.counted(rotation.layer, chunk.head(), chunk.first() + r) == 0 ||
        !IsFiniteRow(chunk.Row(r), rotation.head_dim)) {
      continue;
    }
    UnrotateKey(chunk, r, rotation, sums.key);
    sums.tile.Add(r, sums.key, 1.0);
    ++sums.added[i];
  }
  if (chunk.EndsTurn()) sums.tile.CloseTile(sums.total.At(i));
}

absl::Status MeanKeyOfRun(const HeadRun& run, const MeanKeyArgs& args,
                          TensorView<Float16, 3> mean) {
  const KvRef& keys = args.keys[run.layer];
  const KeyRotation rotation = {args.rotation, run.layer, keys.head_dim};
  RowChunks chunks(run, keys, rotation.Read());
  RunSums sums = {run.first, DimSums(run.scratch, keys.head_dim),
                  run.scratch.Take<float>(PadToLanes(keys.head_dim)),
                  TakeTile<double>(run.scratch, run.count, keys.head_dim),
                  run.scratch.Take<int64_t>(run.count)};
  KVERN_RETURN_IF_ERROR(run.scratch.Taken());
  sums.tile.Clear();
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
