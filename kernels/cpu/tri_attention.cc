// One pass over the keys scores all query heads of several groups, straight from memory; their rows
// stay in f64 until reduced.
#include "kernels/cpu/tri_attention.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tri_attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/band_dots-inl.h"
#include "kernels/cpu/head_runs.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/reference_key-inl.h"
#include "kernels/cpu/row_chunks-inl.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// What the query heads of one group ask of a key, and their scores so far.
struct QueryGroup {
  int64_t head;
  int64_t size;            // query heads
  TensorView<float, 2> u;  // [group * columns, padded 2 * bands]
  TensorView<float, 2> w;  // [group, padded bands]
  double* constant;        // [group * columns] <u, reference key>
  ReferenceKey reference;
  TensorView<double, 2> raw;  // [group, padded tokens]
};

// Rows whose distance is a power of two would share the same few lines of every cache.
constexpr int64_t kRowGap = 2 * kLanes;

QueryGroup TakeGroup(const HeadRun& run, const TriAttentionArgs& args, int64_t head) {
  Scratch& scratch = run.scratch;
  const KvRef& keys = args.keys[run.layer];
  const int64_t size = args.q_heads / args.scores.shape[1];
  const int64_t vectors = size * args.columns;
  return {
      .head = head,
      .size = size,
      .u = TakeTile<float>(scratch, vectors, 2 * int64_t{args.bands}),
      .w = TakeTile<float>(scratch, size, args.bands),
      .constant = scratch.Take<double>(vectors),
      .reference = {keys, head, TakeTile<float>(scratch, 1, keys.head_dim)},
      .raw = TakeTile<double>(scratch, size, TokensOf(keys, head, args.scores.shape[2]) + kRowGap)};
}

void FillGroup(const HeadRun& run, const TriAttentionArgs& args, QueryGroup& group) {
  const int64_t dims = 2 * int64_t{args.bands};
  const int64_t tokens = TokensOf(args.keys[run.layer], group.head, args.scores.shape[2]);
  group.reference.Find(args.candidates.At(run.layer, group.head), tokens);
  for (int64_t g = 0; g < group.size; ++g) {
    const int64_t q_head = group.head * group.size + g;
    CopyVector<float>({args.w.At(run.layer, q_head), {args.bands}, {args.w.stride[2]}},
                      group.w.At(g));
    for (int64_t column = 0; column < args.columns; ++column) {
      const int64_t vector = g * args.columns + column;
      const float* from = args.u.At(run.layer, q_head, column);
      CopyVector<float>({from, {dims}, {args.u.stride[3]}}, group.u.At(vector));
      group.constant[vector] = group.reference.Dot(group.u.At(vector), dims);
    }
  }
}

// Where raw scores go while keys are read. Rows that do not fit into a cache are out of it before
// they are read again: a store that waits for its line costs more than the dots.
enum class RawRows : uint8_t { kInCache, kPastCaches };

RawRows RawRowsOf(const HeadRun& run, const TriAttentionArgs& args) {
  constexpr int64_t kCacheBytes = 512 << 10;
  const int64_t rows = run.count * args.q_heads / args.scores.shape[1];
  const int64_t bytes = rows * args.scores.shape[2] * static_cast<int64_t>(sizeof(double));
  return bytes <= kCacheBytes ? RawRows::kInCache : RawRows::kPastCaches;
}

// raw [16] of query head g: largest column, NaN if any is, plus the spread term.
template <RawRows kRows>
HWY_INLINE void RawScores(const QueryGroup& group, const BandDots& dots, int64_t g, double* raw) {
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  const int64_t columns = group.u.shape[0] / group.size;
  for (int64_t r = 0; r < kChunkTokens; r += TokenStep()) {
    TokenVec best = hn::Set(d, -kRowInfinity);
    for (int64_t vector = g * columns; vector < (g + 1) * columns; ++vector) {
      const float* logits = dots.u + vector * kChunkTokens;
      const TokenVec dot = hn::PromoteTo(d, hn::Load(narrow, logits + r));
      best = StickyMax(best, hn::Add(dot, hn::Set(d, group.constant[vector])));
    }
    const TokenVec spread = hn::PromoteTo(d, hn::Load(narrow, dots.w + g * kChunkTokens + r));
    if constexpr (kRows == RawRows::kInCache) {
      hn::Store(hn::Add(best, spread), d, raw + r);
    } else {
      hn::Stream(hn::Add(best, spread), d, raw + r);
    }
  }
}

// Standardises the rows of `raw` [group, padded tokens] if asked, then reduces them into the first.
void ReduceGroup(const TriAttentionArgs& args, const Spread* spreads, TensorView<double, 2> raw,
                 int64_t tokens) {
  const TokenTag d;
  const bool mean = args.group == GroupReduce::kMean;
  const int64_t size = raw.shape[0];
  for (int64_t token = 0; token < tokens; token += TokenStep()) {
    TokenVec reduced = hn::Set(d, mean ? 0.0 : -kRowInfinity);
    for (int64_t g = 0; g < size; ++g) {
      TokenVec x = hn::Load(d, raw.At(g, token));
      x = hn::IfThenElse(hn::IsFinite(x), x, hn::Set(d, kRowNaN));
      if (args.zscore) x = Standardise(spreads[g], x);
      reduced = mean ? hn::Add(reduced, x) : StickyMax(reduced, x);
    }
    if (mean) reduced = hn::Div(reduced, hn::Set(d, static_cast<double>(size)));
    hn::Store(reduced, d, raw.At(0, token));
  }
}

absl::Status ScoreGroup(const HeadRun& run, const TriAttentionArgs& args, QueryGroup& group,
                        Spread* spreads) {
  KVERN_RETURN_IF_ERROR(run.runner.Check());
  const int64_t tokens = TokensOf(args.keys[run.layer], group.head, args.scores.shape[2]);
  const uint8_t* candidates = args.candidates.At(run.layer, group.head);
  for (int64_t g = 0; g < group.size && args.zscore; ++g) {
    spreads[g] = SpreadOf(group.raw.At(g), candidates, tokens);
  }
  ReduceGroup(args, spreads, group.raw, tokens);
  StoreScoreRow(
      group.raw.data, tokens,
      {args.scores.At(run.layer, group.head), {args.scores.shape[2]}, {args.scores.stride[2]}});
  return absl::OkStatus();
}

// Heads of a run, and what their chunks share.
struct RunGroups {
  RawRows raw_rows;
  BandDots dots;
  WideKeys wide;
};

// Dots of the chunk with all vectors of its group.
template <class T>
HWY_INLINE void GroupDots(const RowChunk<T>& chunk, const RunGroups& run, const BandVectors& by) {
  const bool one_each = by.u.shape[0] == by.w.shape[0];
  if (!one_each || by.layout != RopeLayout::kHalf || by.bands % kLanes != 0) {
    return DotsOfWideKeys(chunk, by, run.wide, run.dots);
  }
  switch (by.w.shape[0]) {
    case 1:
      return FusedDots<1>(chunk, by, run.dots);
    case 2:
      return FusedDots<2>(chunk, by, run.dots);
    case 3:
      if constexpr (kMostVectors >= 3) return FusedDots<3>(chunk, by, run.dots);
      break;
    case 4:
      if constexpr (kMostVectors >= 4) return FusedDots<4>(chunk, by, run.dots);
      break;
    default:
      break;
  }
  DotsOfWideKeys(chunk, by, run.wide, run.dots);
}

absl::Status TriAttentionOfRun(const HeadRun& run, const TriAttentionArgs& args) {
  auto* groups = run.scratch.Take<QueryGroup>(run.count);
  KVERN_RETURN_IF_ERROR(run.scratch.Taken());
  for (int64_t i = 0; i < run.count; ++i) groups[i] = TakeGroup(run, args, run.first + i);
  const int64_t size = args.q_heads / args.scores.shape[1];
  const int64_t dims = 2 * int64_t{args.bands};
  const RunGroups shared = {RawRowsOf(run, args),
                            {run.scratch.Take<float>(size * args.columns * kChunkTokens),
                             run.scratch.Take<float>(size * kChunkTokens)},
                            {TakeTile<float>(run.scratch, kChunkTokens, dims),
                             TakeTile<float>(run.scratch, kChunkTokens, args.bands)}};
  RowChunks chunks(run, args.keys[run.layer], ReadInSteps(args.bands));
  Spread* spreads = run.scratch.Take<Spread>(size);
  KVERN_RETURN_IF_ERROR(run.scratch.Taken());
  for (int64_t i = 0; i < run.count; ++i) FillGroup(run, args, groups[i]);
  const auto visit = [&](const auto& chunk) HWY_ATTR {
    const QueryGroup& group = groups[chunk.head() - run.first];
    const BandVectors by = {args.layout, args.bands, group.reference.data(), group.u, group.w};
    GroupDots(chunk, shared, by);
    for (int64_t g = 0; g < group.size; ++g) {
      double* raw = group.raw.At(g, chunk.first());
      if (shared.raw_rows == RawRows::kInCache) {
        RawScores<RawRows::kInCache>(group, shared.dots, g, raw);
      } else {
        RawScores<RawRows::kPastCaches>(group, shared.dots, g, raw);
      }
    }
  };
  // Vectors of many heads in turn would push keys out of the first cache before they are read.
  const int64_t turn_tokens = size > 1 ? kTileTokens : kChunkTokens;
  KVERN_RETURN_IF_ERROR(chunks.ForEach(args.scores.shape[2], turn_tokens, visit));
  for (int64_t i = 0; i < run.count; ++i) {
    KVERN_RETURN_IF_ERROR(ScoreGroup(run, args, groups[i], spreads));
  }
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(TriAttentionOfRun);

// All heads of a run keep their raw scores until the end; more than this leaves the caches.
constexpr int64_t kMostRawBytes = 8 << 20;

absl::Status TriAttention(Runner& runner, const TriAttentionArgs& args) {
  const int64_t kv_heads = args.scores.shape[1];
  const int64_t group_size = args.q_heads / std::max<int64_t>(1, kv_heads);
  const int64_t head_bytes = std::max<int64_t>(1, group_size * args.scores.shape[2] * 8);
  const int64_t heads = std::min(NearHeads(args.keys, kv_heads), kMostRawBytes / head_bytes);
  return ForEachHeadRun(runner, args.scores.shape, heads, [&](const HeadRun& run) {
    return HWY_DYNAMIC_DISPATCH(TriAttentionOfRun)(run, args);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
