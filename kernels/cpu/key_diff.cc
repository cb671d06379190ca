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
  sums.tile.Clear();
  std::fill(sums.anchor.data, sums.anchor.data + sums.anchor.Size(), 0.0);
  std::fill(sums.added, sums.added + heads, 0);
}

template <class T>
HWY_INLINE void LoadKeys(const RowChunk<T>& chunk, const RunKeys& run) {
  for (int64_t r = 0; r < kChunkTokens; ++r) {
    chunk.Prefetch(r);
    // Rows past the last one repeat it, but have no angles of their own.
    if (r < chunk.count()) UnrotateKey(chunk, r, run.rotation, run.keys.At(r));
  }
}

// Lanes of sum x[r] * by[r] in f64 for 4 rows of `n` elements.
template <class By>
HWY_INLINE void WideLanes(TensorView<const float, 2> x, int64_t n, const By& by,
                          double* HWY_RESTRICT lanes) {
  constexpr int kRows = 4;
  const LaneTag<double> d;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(d));
  using V = hn::Vec<decltype(d)>;
  for (int64_t part = 0; part < kLanes; part += kStep) {
    V sum[kRows];
    Unroll<kRows>([&](auto r) KVERN_INLINE_STEP { sum[r] = hn::Zero(d); });
    int64_t i = part;
    for (; i - part + kLanes <= n; i += kLanes) {
      Unroll<kRows>([&](auto r) KVERN_INLINE_STEP {
        const V key = LoadWide(d, x.At(r) + i);
        sum[r] = hn::MulAdd(key, by(d, key, i), sum[r]);
      });
    }
    if (i < n) {
      const auto present = Present(d, n - i);
      Unroll<kRows>([&](auto r) KVERN_INLINE_STEP {
        const V key = LoadWide(d, x.At(r) + i);
        sum[r] = hn::IfThenElse(present, hn::MulAdd(key, by(d, key, i), sum[r]), sum[r]);
      });
    }
    Unroll<kRows>([&](auto r)
                      KVERN_INLINE_STEP { hn::Store(sum[r], d, lanes + r * kLanes + part); });
  }
}

// out [16] = LaneDot(key, by) in f64 of the chunk's keys.
template <class By>
HWY_INLINE void WideDots(const RunKeys& run, const By& by, double* HWY_RESTRICT out) {
  for (int64_t r = 0; r < kChunkTokens; r += 4) {
    const TensorView<const float, 2> rows = {
        run.keys.At(r), {4, run.keys.shape[1]}, {run.keys.stride[0], 1}};
    WideLanes(rows, run.rotation.head_dim, by, run.lanes + r * kLanes);
  }
  StoreTreeSums16(run.lanes, out);
}

// Norms of one chunk, NaN for keys that are not finite; unit keys of those alive join the anchor.
template <class T>
HWY_INLINE void AddChunk(const RowChunk<T>& chunk, const RunKeys& run, RunSums& sums) {
  const int64_t i = chunk.head() - sums.first_head;
  const TokenTag d;
  LoadKeys(chunk, run);
  HWY_ALIGN double squares[kChunkTokens];
  HWY_ALIGN double inverse[kChunkTokens];
  WideDots(
      run, [](auto, auto key, int64_t) KVERN_INLINE_STEP { return key; }, squares);
  double* norms = sums.row.At(i, chunk.first());
  for (int64_t r = 0; r < kChunkTokens; r += TokenStep()) {
    const TokenVec norm = hn::Sqrt(hn::Load(d, squares + r));
    const TokenVec smallest = hn::Set(d, kSmallestNorm);
    const TokenVec divisor = hn::IfThenElse(hn::Lt(norm, smallest), smallest, norm);
    hn::Store(hn::Div(hn::Set(d, 1.0), divisor), d, inverse + r);
    hn::Store(hn::IfThenElse(hn::IsFinite(norm), norm, hn::Set(d, kRowNaN)), d, norms + r);
  }
  for (int64_t r = 0; r < chunk.count(); ++r) {
    if (run.args.alive(run.rotation.layer, chunk.head(), chunk.first() + r) == 0) continue;
    if (!std::isfinite(norms[r])) continue;
    sums.tile.Add(r, run.keys.At(r), inverse[r]);
    ++sums.added[i];
  }
  if (chunk.EndsTurn()) sums.tile.CloseTile(sums.anchor.At(i));
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
  LoadKeys(chunk, run);
  HWY_ALIGN double dots[kChunkTokens];
  WideDots(
      run,
      [&](auto lanes, auto, int64_t at)
          KVERN_INLINE_STEP { return hn::Load(lanes, anchor.direction + at); },
      dots);
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
  const RunKeys run_keys = {args, rotation, TakeTile<float>(scratch, kChunkTokens, keys.head_dim),
                            scratch.Take<double>(kChunkTokens * kLanes)};
  RunSums sums = {run.first, DimSums(scratch, keys.head_dim),
                  TakeTile<double>(scratch, run.count, keys.head_dim),
                  scratch.Take<int64_t>(run.count), TakeTile<double>(scratch, run.count, tokens)};
  double* anchor_norms = scratch.Take<double>(run.count);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  std::fill(run_keys.keys.data, run_keys.keys.data + run_keys.keys.Size(), 0.0f);
  Clear(run.count, sums);
  KVERN_RETURN_IF_ERROR(chunks.ForEach(
      tokens, kTileTokens, [&](const auto& chunk) HWY_ATTR { AddChunk(chunk, run_keys, sums); }));
  for (int64_t i = 0; i < run.count; ++i) {
    double* anchor = sums.anchor.At(i);
    const double count = static_cast<double>(std::max<int64_t>(sums.added[i], 1));
    for (int64_t d = 0; d < keys.head_dim; ++d) anchor[d] /= count;
    anchor_norms[i] = std::sqrt(LaneDotAs<double>(anchor, anchor, keys.head_dim));
  }
  KVERN_RETURN_IF_ERROR(chunks.ForEach(tokens, kChunkTokens, [&](const auto& chunk) HWY_ATTR {
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

absl::Status KeyDiff(Runner& runner, const KeyDiffArgs& args) {
  const int64_t heads = NearHeads(args.keys, args.scores.shape[1]);
  return ForEachHeadRun(runner, args.scores.shape, heads, [&](const HeadRun& run) {
    return HWY_DYNAMIC_DISPATCH(KeyDiffOfRun)(run, args);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
