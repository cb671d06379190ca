// One pass over the keys scores all query heads of the group; their rows stay in f64 until reduced.
#include "kernels/cpu/tri_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tri_attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/band_rotation.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/centred_keys-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// What the query heads of one group ask of a key, packed for LaneDots.
struct QueryGroup {
  TensorView<float, 2> u;  // [group * columns, padded 2 * bands]
  TensorView<float, 2> w;  // [group, padded bands]
  double* constant;        // [group * columns] <u, reference key>
  int64_t size;            // query heads
};

QueryGroup TakeGroup(Scratch& scratch, const TriAttentionArgs& args, int64_t size) {
  const int64_t vectors = size * args.columns;
  return {TakeTile<float>(scratch, vectors, 2 * int64_t{args.bands}),
          TakeTile<float>(scratch, size, args.bands), scratch.Take<double>(vectors), size};
}

void FillGroup(const HeadProblem& problem, const TriAttentionArgs& args, const CentredKeys& keys,
               QueryGroup& group) {
  const int64_t dims = 2 * int64_t{args.bands};
  for (int64_t g = 0; g < group.size; ++g) {
    const int64_t q_head = problem.head * group.size + g;
    CopyVector<float>({args.w.At(problem.layer, q_head), {args.bands}, {args.w.stride[2]}},
                      group.w.At(g));
    for (int64_t column = 0; column < args.columns; ++column) {
      const int64_t vector = g * args.columns + column;
      const float* from = args.u.At(problem.layer, q_head, column);
      CopyVector<float>({from, {dims}, {args.u.stride[3]}}, group.u.At(vector));
      group.constant[vector] = keys.ReferenceDot(group.u.At(vector), dims);
    }
  }
}

// lengths [padded bands] = |band| of one key.
HWY_INLINE void BandLengths(const TriAttentionArgs& args, const float* key, float* lengths) {
  const hn::CappedTag<float, 8> d;
  const int64_t step = static_cast<int64_t>(hn::MaxLanes(d));
  const RotationRow row = {args.layout, args.bands, nullptr, nullptr};
  int64_t band = 0;
  for (; band + step <= args.bands; band += step) {
    auto re = hn::Undefined(d);
    auto im = hn::Undefined(d);
    if (args.layout == RopeLayout::kHalf) {
      re = hn::LoadU(d, key + band);
      im = hn::LoadU(d, key + args.bands + band);
    } else {
      hn::LoadInterleaved2(d, key + 2 * band, re, im);
    }
    hn::StoreU(hn::Sqrt(hn::MulAdd(re, re, hn::Mul(im, im))), d, lengths + band);
  }
  for (; band < args.bands; ++band) {
    const float re = key[row.RealDim(band)];
    const float im = key[row.ImagDim(band)];
    lengths[band] = std::sqrt(std::fma(re, re, im * im));
  }
}

// Working memory of one chunk.
struct ChunkDots {
  TensorView<float, 2> lengths;  // [kChunkTokens, padded bands]
  TensorView<float, 2> logits;   // [group * columns, kChunkTokens]
  TensorView<float, 2> spread;   // [group, kChunkTokens]
};

HWY_INLINE void DotChunk(const TriAttentionArgs& args, const CentredKeys& keys,
                         const QueryGroup& group, const ChunkDots& dots) {
  const int64_t count = keys.rows().shape[0];
  for (int64_t r = 0; r < count; ++r) BandLengths(args, keys.rows().At(r), dots.lengths.At(r));
  LaneDots<float>({.rows = keys.centred().data,
                   .row_stride = keys.centred().stride[0],
                   .row_count = count,
                   .vectors = group.u.data,
                   .vector_stride = group.u.stride[0],
                   .vector_count = group.u.shape[0],
                   .n = 2 * int64_t{args.bands}},
                  dots.logits);
  LaneDots<float>({.rows = dots.lengths.data,
                   .row_stride = dots.lengths.stride[0],
                   .row_count = count,
                   .vectors = group.w.data,
                   .vector_stride = group.w.stride[0],
                   .vector_count = group.size,
                   .n = args.bands},
                  dots.spread);
}

// raw [kChunkTokens] of query head g: largest column, NaN if any is, plus the spread term.
HWY_INLINE void RawScores(const QueryGroup& group, const ChunkDots& dots, int64_t g, double* raw) {
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  const int64_t columns = group.u.shape[0] / group.size;
  for (int64_t r = 0; r < kChunkTokens; r += TokenStep()) {
    TokenVec best = hn::Set(d, -kRowInfinity);
    for (int64_t vector = g * columns; vector < (g + 1) * columns; ++vector) {
      const TokenVec dot = hn::PromoteTo(d, hn::Load(narrow, dots.logits.At(vector, r)));
      best = StickyMax(best, hn::Add(dot, hn::Set(d, group.constant[vector])));
    }
    const TokenVec spread = hn::PromoteTo(d, hn::Load(narrow, dots.spread.At(g, r)));
    hn::Store(hn::Add(best, spread), d, raw + r);
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

absl::Status TriAttentionHead(const HeadProblem& problem, const TriAttentionArgs& args,
                              ScoreView scores) {
  const auto [runner, scratch, layer, head] = problem;
  const int64_t tokens = TokensOf(args.keys[layer], head, scores.shape[2]);
  QueryGroup group = TakeGroup(scratch, args, args.q_heads / scores.shape[1]);
  const int64_t vectors = group.u.shape[0];
  const ChunkDots dots = {TakeTile<float>(scratch, kChunkTokens, args.bands),
                          TakeTile<float>(scratch, vectors, kChunkTokens),
                          TakeTile<float>(scratch, group.size, kChunkTokens)};
  CentredKeys keys(problem, args.keys[layer], tokens);
  const TensorView<double, 2> raw = TakeTile<double>(scratch, group.size, tokens);
  double* included = scratch.Take<double>(PadToLanes(tokens));
  Spread* spreads = scratch.Take<Spread>(group.size);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  const uint8_t* candidates = args.candidates.At(layer, head);
  keys.FindReference(candidates);
  FillGroup(problem, args, keys, group);
  for (int64_t first = 0; first < tokens; first += kChunkTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(runner, first));
    const int64_t count = std::min(kChunkTokens, tokens - first);
    keys.Load(first, count);
    DotChunk(args, keys, group, dots);
    for (int64_t g = 0; g < group.size; ++g) RawScores(group, dots, g, raw.At(g, first));
  }
  for (int64_t g = 0; g < group.size && args.zscore; ++g) {
    spreads[g] = SpreadOf(raw.At(g), candidates, tokens, included);
  }
  ReduceGroup(args, spreads, raw, tokens);
  StoreScores(raw.data, tokens, ScoreRow(scores, problem));
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(TriAttentionHead);

absl::Status TriAttention(Runner& runner, const TriAttentionArgs& args, ScoreView scores) {
  return ForEachHead(runner, scores.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(TriAttentionHead)(problem, args, scores);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
