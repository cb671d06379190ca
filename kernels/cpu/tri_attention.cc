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
#include "kernels/cpu/head_runs.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/reference_key-inl.h"
#include "kernels/cpu/row_chunks-inl.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/token_rows-inl.h"
#include "kernels/cpu/tree_sums-inl.h"
#include "kernels/cpu/unroll-inl.h"

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

QueryGroup TakeGroup(const HeadRun& run, const TriAttentionArgs& args, int64_t head) {
  Scratch& scratch = run.scratch;
  const KvRef& keys = args.keys[run.layer];
  const int64_t size = args.q_heads / args.scores.shape[1];
  const int64_t vectors = size * args.columns;
  return {.head = head,
          .size = size,
          .u = TakeTile<float>(scratch, vectors, 2 * int64_t{args.bands}),
          .w = TakeTile<float>(scratch, size, args.bands),
          .constant = scratch.Take<double>(vectors),
          .reference = {keys, head, TakeTile<float>(scratch, 1, keys.head_dim)},
          .raw = TakeTile<double>(scratch, size, TokensOf(keys, head, args.scores.shape[2]))};
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

// Keys minus the reference key: what u is multiplied with.
struct CentredPart {
  static constexpr bool kReadsFirst = true;  // rows come out of memory: it asks for later ones
  const float* reference;                    // aligned
  int64_t n;                                 // 2 * bands

  template <class D, class T>
  HWY_INLINE hn::Vec<D> operator()(D d, const T* key, int64_t i) const {
    return hn::Sub(LoadAsFloat(d, key + i), hn::Load(d, reference + i));
  }
};

// Lengths of the bands: what w is multiplied with.
struct BandPart {
  static constexpr bool kReadsFirst = false;
  RopeLayout layout;
  int64_t n;  // bands

  template <class D, class T>
  HWY_INLINE hn::Vec<D> operator()(D d, const T* key, int64_t band) const {
    auto re = hn::Undefined(d);
    auto im = hn::Undefined(d);
    if (layout == RopeLayout::kHalf) {
      re = LoadAsFloat(d, key + band);
      im = LoadAsFloat(d, key + n + band);
    } else {
      const auto low = LoadAsFloat(d, key + 2 * band);
      const auto high = LoadAsFloat(d, key + 2 * band + static_cast<int64_t>(hn::MaxLanes(d)));
      re = hn::ConcatEven(d, high, low);
      im = hn::ConcatOdd(d, high, low);
    }
    return hn::Sqrt(hn::MulAdd(re, re, hn::Mul(im, im)));
  }
};

// Rows and vectors of one panel: their sums fit into registers, and hide the latency of fma.
constexpr int kPanelKeys = 4;
constexpr int kMostVectors = hn::MaxLanes(LaneTag<float>()) == kLanes ? 4 : 2;

// Parts of keys, and the vectors they are multiplied with.
template <class Part>
struct Factors {
  const Part& part;
  TensorView<const float, 2> vectors;
};

// lanes [kVectors, 16 rows, 16] of rows r to r + kPanelKeys: each a sum of part(row) * vector.
template <int kVectors, class T, class Part>
HWY_INLINE void PanelLanes(const RowChunk<T>& chunk, int64_t r, const Factors<Part>& factors,
                           float* HWY_RESTRICT lanes) {
  const Part& part = factors.part;
  const TensorView<const float, 2> vectors = factors.vectors;
  const LaneTag<float> d;
  using V = hn::Vec<decltype(d)>;
  for (int64_t at = 0; at < kLanes; at += static_cast<int64_t>(hn::MaxLanes(d))) {
    V sum[kPanelKeys][kVectors];
    Unroll<kPanelKeys>([&](auto k) KVERN_INLINE_STEP {
      Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP { sum[k][v] = hn::Zero(d); });
    });
    int64_t i = at;
    for (; i - at + kLanes <= part.n; i += kLanes) {
      V by[kVectors];
      Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP { by[v] = hn::Load(d, vectors.At(v) + i); });
      Unroll<kPanelKeys>([&](auto k) KVERN_INLINE_STEP {
        const V x = part(d, chunk.Row(r + k), i);
        Unroll<kVectors>([&](auto v)
                             KVERN_INLINE_STEP { sum[k][v] = hn::MulAdd(x, by[v], sum[k][v]); });
      });
    }
    if (i < part.n) {
      const auto present = Present(d, part.n - i);
      Unroll<kPanelKeys>([&](auto k) KVERN_INLINE_STEP {
        const V x = part(d, chunk.Row(r + k), i);
        Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP {
          const V added = hn::MulAdd(x, hn::Load(d, vectors.At(v) + i), sum[k][v]);
          sum[k][v] = hn::IfThenElse(present, added, sum[k][v]);
        });
      });
    }
    Unroll<kPanelKeys>([&](auto k) KVERN_INLINE_STEP {
      Unroll<kVectors>([&](auto v) KVERN_INLINE_STEP {
        hn::Store(sum[k][v], d, lanes + (v * kChunkTokens + r + k) * kLanes + at);
      });
    });
  }
}

// dots [kVectors, 16] = LaneDot(part(row), vector).
template <int kVectors, class T, class Part>
HWY_INLINE void VectorDots(const RowChunk<T>& chunk, const Part& part,
                           TensorView<const float, 2> vectors, float* HWY_RESTRICT dots) {
  HWY_ALIGN float lanes[kVectors * kChunkTokens * kLanes];
  for (int64_t r = 0; r < kChunkTokens; r += kPanelKeys) {
    for (int64_t k = 0; Part::kReadsFirst && k < kPanelKeys; ++k) chunk.Prefetch(r + k);
    PanelLanes<kVectors>(chunk, r, Factors<Part>{part, vectors}, lanes);
  }
  for (int v = 0; v < kVectors; ++v) {
    StoreTreeSums16(lanes + v * kChunkTokens * kLanes, dots + v * kChunkTokens);
  }
}

// dots [vectors, 16], dense.
template <class T, class Part>
HWY_INLINE void ChunkDots(const RowChunk<T>& chunk, const Part& part, TensorView<float, 2> vectors,
                          float* HWY_RESTRICT dots) {
  int64_t left = vectors.shape[0];
  TensorView<const float, 2> some = {vectors.data, {0, vectors.shape[1]}, {vectors.stride[0], 1}};
  const auto advance = [&](int count) HWY_ATTR {
    some.data += count * some.stride[0];
    dots += count * kChunkTokens;
    left -= count;
  };
  for (; left >= kMostVectors; advance(kMostVectors)) {
    VectorDots<kMostVectors>(chunk, part, some, dots);
  }
  if (left >= 2) {
    VectorDots<2>(chunk, part, some, dots);
    advance(2);
  }
  if (left == 1) VectorDots<1>(chunk, part, some, dots);
}

// Dots of one chunk, [vectors, 16] each.
struct Dots {
  float* logits;  // by u
  float* spread;  // by w
};

// raw [16] of query head g: largest column, NaN if any is, plus the spread term.
HWY_INLINE void RawScores(const QueryGroup& group, const Dots& dots, int64_t g, double* raw) {
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  const int64_t columns = group.u.shape[0] / group.size;
  for (int64_t r = 0; r < kChunkTokens; r += TokenStep()) {
    TokenVec best = hn::Set(d, -kRowInfinity);
    for (int64_t vector = g * columns; vector < (g + 1) * columns; ++vector) {
      const float* logits = dots.logits + vector * kChunkTokens;
      const TokenVec dot = hn::PromoteTo(d, hn::Load(narrow, logits + r));
      best = StickyMax(best, hn::Add(dot, hn::Set(d, group.constant[vector])));
    }
    const TokenVec spread = hn::PromoteTo(d, hn::Load(narrow, dots.spread + g * kChunkTokens + r));
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

absl::Status TriAttentionOfRun(const HeadRun& run, const TriAttentionArgs& args) {
  auto* groups = run.scratch.Take<QueryGroup>(run.count);
  KVERN_RETURN_IF_ERROR(run.scratch.Taken());
  for (int64_t i = 0; i < run.count; ++i) groups[i] = TakeGroup(run, args, run.first + i);
  const int64_t size = args.q_heads / args.scores.shape[1];
  const Dots dots = {run.scratch.Take<float>(size * args.columns * kChunkTokens),
                     run.scratch.Take<float>(size * kChunkTokens)};
  RowChunks chunks(run, args.keys[run.layer], ReadInSteps(args.bands));
  Spread* spreads = run.scratch.Take<Spread>(size);
  KVERN_RETURN_IF_ERROR(run.scratch.Taken());
  for (int64_t i = 0; i < run.count; ++i) FillGroup(run, args, groups[i]);
  const BandPart bands = {args.layout, args.bands};
  const auto visit = [&](const auto& chunk) HWY_ATTR {
    const QueryGroup& group = groups[chunk.head() - run.first];
    const CentredPart centred = {group.reference.data(), 2 * int64_t{args.bands}};
    ChunkDots(chunk, centred, group.u, dots.logits);
    ChunkDots(chunk, bands, group.w, dots.spread);
    for (int64_t g = 0; g < group.size; ++g) {
      RawScores(group, dots, g, group.raw.At(g, chunk.first()));
    }
  };
  KVERN_RETURN_IF_ERROR(chunks.ForEach(args.scores.shape[2], kChunkTokens, visit));
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
