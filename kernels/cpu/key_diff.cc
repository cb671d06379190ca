// One pass adds unit keys to the anchor and keeps every norm, the next takes the cosines.
#include "kernels/cpu/key_diff.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/key_diff.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/dim_sums-inl.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/head_runs.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/row_chunks-inl.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/token_rows-inl.h"
#include "kernels/cpu/tree_sums-inl.h"
#include "kernels/cpu/unroll-inl.h"
#include "kernels/cpu/unrotated_chunk-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr double kSmallestNorm = 1e-12;    // of a key, before it is divided
constexpr double kSmallestProduct = 1e-8;  // of the two norms under the cosine

// What every chunk of a run needs: the op, how keys are turned, and working memory.
struct RunKeys {
  const KeyDiffArgs& args;
  KeyRotation rotation;
  NextAngles next_angles;
  TensorView<float, 2> keys;  // [16, padded head_dim], un-rotated if asked
  double* lanes;              // [16, 16] of sums
};

// Sums of the heads of one run.
struct RunSums {
  int64_t first_head;
  DimSums tile;
  TensorView<double, 2> anchor;  // [heads, padded head_dim] mean unit key of the finite keys alive
  int64_t* added;                // [heads]
  TensorView<double, 2> row;     // [heads, padded tokens] norms, then scores
};

void Clear(int64_t heads, RunSums& sums) {
  std::fill(sums.anchor.data, sums.anchor.data + sums.anchor.Size(), 0.0);
  std::fill(sums.added, sums.added + heads, 0);
}

// lanes [kRows, 16] of sum x[r] * by(x[r]) in f64 for kRows rows of `n` elements.
template <int kRows, class By>
HWY_INLINE void WideLanes(TensorView<const float, 2> x, int64_t n, const By& by,
                          double* HWY_RESTRICT lanes) {
  const LaneTag<double> d;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(d));
  constexpr int kParts = kLanes / kStep;
  using V = hn::Vec<decltype(d)>;
  V sum[kRows][kParts];
  Unroll<kRows>([&](auto r) KVERN_INLINE_STEP {
    Unroll<kParts>([&](auto part) KVERN_INLINE_STEP { sum[r][part] = hn::Zero(d); });
  });
  const auto step = [&](int64_t i, auto add) KVERN_INLINE_STEP {
    Unroll<kParts>([&](auto part) KVERN_INLINE_STEP {
      Unroll<kRows>([&](auto r) KVERN_INLINE_STEP {
        const int64_t at = i + part * kStep;
        const V key = LoadWide(d, x.At(r) + at);
        sum[r][part] = add(key, by(d, key, at), sum[r][part], part);
      });
    });
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    step(i,
         [](V key, V with, V sum, auto) KVERN_INLINE_STEP { return hn::MulAdd(key, with, sum); });
  }
  if (i < n) {
    step(i, [&](V key, V with, V sum, auto part) KVERN_INLINE_STEP {
      const auto present = Present(LaneTag<double>(), std::max<int64_t>(n - i - part * kStep, 0));
      return hn::IfThenElse(present, hn::MulAdd(key, with, sum), sum);
    });
  }
  Unroll<kRows>([&](auto r) KVERN_INLINE_STEP {
    Unroll<kParts>([&](auto part) KVERN_INLINE_STEP {
      hn::Store(sum[r][part], d, lanes + r * kLanes + part * kStep);
    });
  });
}

// out [16] = LaneDot(key, by) in f64 of 16 keys; meanwhile(r) is called for each of them.
template <class By, class Meanwhile>
HWY_INLINE void WideDots(const RunKeys& run, TensorView<const float, 2> keys, const By& by,
                         const Meanwhile& meanwhile, double* HWY_RESTRICT out) {
  // Eight sums in flight hide the latency of fma.
  constexpr int kParts = kLanes / static_cast<int>(hn::MaxLanes(LaneTag<double>()));
  constexpr int kRows = kParts >= 8 ? 1 : 8 / kParts;
  for (int64_t r = 0; r < kChunkTokens; r += kRows) {
    for (int64_t k = 0; k < kRows; ++k) meanwhile(r + k);
    const TensorView<const float, 2> rows = {
        keys.At(r), {kRows, keys.shape[1]}, {keys.stride[0], 1}};
    WideLanes<kRows>(rows, run.rotation.head_dim, by, run.lanes + r * kLanes);
  }
  StoreTreeSums16(run.lanes, out);
}

// Norms of one chunk, NaN for keys that are not finite; unit keys of those alive join the anchor.
template <class T>
HWY_INLINE void AddChunk(const RowChunk<T>& chunk, const RunKeys& run, RunSums& sums) {
  const int64_t i = chunk.head() - sums.first_head;
  const TokenTag d;
  const TensorView<float, 2> keys = sums.tile.Rows(chunk.first());
  UnrotateChunk(chunk, run.rotation, RowsBelow(chunk.count()), keys,
                [&](int64_t r) KVERN_INLINE_STEP {
                  chunk.Prefetch(r);
                  run.next_angles.Prefetch(chunk, r);
                });
  HWY_ALIGN double squares[kChunkTokens];
  double* inverse = sums.tile.Factors(chunk.first());
  WideDots(
      run, keys, [](auto, auto key, int64_t) KVERN_INLINE_STEP { return key; },
      [](int64_t) KVERN_INLINE_STEP {}, squares);
  double* norms = sums.row.At(i, chunk.first());
  for (int64_t r = 0; r < kChunkTokens; r += TokenStep()) {
    const TokenVec norm = hn::Sqrt(hn::Load(d, squares + r));
    const TokenVec smallest = hn::Set(d, kSmallestNorm);
    const TokenVec divisor = hn::IfThenElse(hn::Lt(norm, smallest), smallest, norm);
    hn::Store(hn::Div(hn::Set(d, 1.0), divisor), d, inverse + r);
    hn::Store(hn::IfThenElse(hn::IsFinite(norm), norm, hn::Set(d, kRowNaN)), d, norms + r);
  }
  const TensorView<const uint8_t, 1> mask = {
      run.args.alive.At(run.rotation.layer, chunk.head(), chunk.first()),
      {chunk.count()},
      {run.args.alive.stride[2]}};
  const RowSet alive = RowsIn(mask, chunk.count());
  for (int64_t r = 0; r < chunk.count(); ++r) {
    if (HWY_LIKELY((alive >> r & 1) != 0 && std::isfinite(norms[r]))) {
      ++sums.added[i];
      continue;
    }
    inverse[r] = 0;
    if (!std::isfinite(norms[r])) std::fill_n(keys.At(r), keys.shape[1], 0.0f);
  }
  double* anchor = chunk.EndsTurn() ? sums.anchor.At(i) : nullptr;
  sums.tile.Advance(chunk.first() + chunk.count(), anchor);
}

struct Anchor {
  const double* direction;  // [padded head_dim]
  double norm;
};

// Replaces the norms of one chunk by scores: minus the cosine to the anchor.
template <class T>
HWY_INLINE void ScoreChunk(const RowChunk<T>& chunk, const RunKeys& run, Anchor anchor,
                           double* row) {
  const TokenTag d;
  UnrotateChunk(chunk, run.rotation, RowsBelow(chunk.count()), run.keys,
                [&](int64_t r) KVERN_INLINE_STEP { run.next_angles.Prefetch(chunk, r); });
  HWY_ALIGN double dots[kChunkTokens];
  WideDots(
      run, run.keys,
      [&](auto lanes, auto, int64_t at)
          KVERN_INLINE_STEP { return hn::Load(lanes, anchor.direction + at); },
      [&](int64_t r) KVERN_INLINE_STEP { chunk.Prefetch(r); }, dots);
  for (int64_t r = 0; r < kChunkTokens; r += TokenStep()) {
    const TokenVec product = hn::Mul(hn::Load(d, row + r), hn::Set(d, anchor.norm));
    const TokenVec smallest = hn::Set(d, kSmallestProduct);
    const TokenVec divisor = hn::IfThenElse(hn::Lt(product, smallest), smallest, product);
    hn::Store(hn::Div(hn::Neg(hn::Load(d, dots + r)), divisor), d, row + r);
  }
}

absl::Status KeyDiffOfRun(const HeadRun& run, const KeyDiffArgs& args) {
  Scratch& scratch = run.scratch;
  const KvRef& keys = args.keys[run.layer];
  const int64_t tokens = args.scores.shape[2];
  const KeyRotation rotation = {args.unrotate, run.layer, keys.head_dim};
  RowChunks chunks(run, keys, rotation.Read());
  const RunKeys run_keys = {args,
                            rotation,
                            {rotation, run.first, run.count, keys, tokens},
                            TakeTile<float>(scratch, kChunkTokens, keys.head_dim),
                            scratch.Take<double>(kChunkTokens * kLanes)};
  RunSums sums = {run.first, DimSums(scratch, keys.head_dim),
                  TakeTile<double>(scratch, run.count, keys.head_dim),
                  scratch.Take<int64_t>(run.count), TakeTile<double>(scratch, run.count, tokens)};
  double* anchor_norms = scratch.Take<double>(run.count);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  Clear(run.count, sums);
  KVERN_RETURN_IF_ERROR(chunks.ForEach(
      tokens, kTileTokens, [&](const auto& chunk) HWY_ATTR { AddChunk(chunk, run_keys, sums); }));
  for (int64_t i = 0; i < run.count; ++i) {
    double* anchor = sums.anchor.At(i);
    const double count = static_cast<double>(std::max<int64_t>(sums.added[i], 1));
    for (int64_t d = 0; d < keys.head_dim; ++d) anchor[d] /= count;
    anchor_norms[i] = std::sqrt(LaneDotAs<double>(anchor, anchor, keys.head_dim));
  }
  KVERN_RETURN_IF_ERROR(chunks.ForEach(tokens, kTileTokens, [&](const auto& chunk) HWY_ATTR {
    const int64_t i = chunk.head() - run.first;
    ScoreChunk(chunk, run_keys, {sums.anchor.At(i), anchor_norms[i]},
               sums.row.At(i, chunk.first()));
  }));
  for (int64_t i = 0; i < run.count; ++i) {
    const int64_t head = run.first + i;
    StoreScoreRow(sums.row.At(i), TokensOf(keys, head, tokens),
                  {args.scores.At(run.layer, head), {tokens}, {args.scores.stride[2]}});
  }
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(KeyDiffOfRun);

// All heads of a run keep their norms until the anchor is known; more than this leaves the caches.
constexpr int64_t kMostNormBytes = 8 << 20;

absl::Status KeyDiff(Runner& runner, const KeyDiffArgs& args) {
  const int64_t head_bytes = std::max<int64_t>(1, args.scores.shape[2] * 8);
  const int64_t heads =
      std::min(NearHeads(args.keys, args.scores.shape[1]), kMostNormBytes / head_bytes);
  return ForEachHeadRun(runner, args.scores.shape, heads, [&](const HeadRun& run) {
    return HWY_DYNAMIC_DISPATCH(KeyDiffOfRun)(run, args);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
