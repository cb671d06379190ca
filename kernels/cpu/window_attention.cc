// One query head at a time: all its queries share a pass over the keys, a tile of which becomes
// exponentials before it leaves the cache. They wait for what the whole row makes of them.
#include "kernels/cpu/window_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/window_attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/centred_keys-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/skinny_dots-inl.h"
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, kLanes>;
inline constexpr int64_t kTileQuads = kTileTokens / kQuad;

// The queries of one query head and what they make of the keys. A row of `padded` numbers belongs
// to the four tokens of a quad, [padded / 4 queries, 4 tokens].
struct QueryWindow {
  TensorView<float, 2> queries;   // [window, padded head_dim]
  int64_t prefix;                 // tokens before the window
  int64_t tiles;                  // of kTileTokens
  int64_t padded;                 // queries up to a multiple of 4, times 4
  float* exponentials;            // [tiles, kTileQuads, padded] e^(logit - largest of the tile)
  TensorView<double, 2> largest;  // [tiles, padded queries] dots
  TensorView<double, 2> sums;     // [tiles, padded queries] of exponentials, then weights
  double* lanes;                  // [4, padded] of the sums of a tile
  float* spread;                  // [padded] largest of the tile, four times over

  HWY_INLINE QuadTile TileAt(int64_t tile) const {
    return {exponentials + tile * kTileQuads * padded, padded};
  }
};

QueryWindow TakeWindow(Scratch& scratch, const WindowAttentionArgs& args, int64_t tokens) {
  QueryWindow window;
  const int64_t size = args.queries.shape[2];
  window.queries = TakeTile<float>(scratch, size, args.queries.shape[3]);
  window.prefix = std::max<int64_t>(tokens - size, 0);
  window.tiles = window.prefix == 0 ? 0 : (tokens + kTileTokens - 1) / kTileTokens;
  window.padded = PadToQuad(size) * kQuad;
  window.exponentials = scratch.Take<float>(window.tiles * kTileQuads * window.padded);
  window.largest = TakeTile<double>(scratch, window.tiles, size);
  window.sums = TakeTile<double>(scratch, window.tiles, size);
  window.lanes = scratch.Take<double>(window.padded * kQuad);
  window.spread = scratch.Take<float>(window.padded);
  return window;
}

// queries: [window, head_dim].
void FillWindow(TensorView<const float, 2> queries, const QueryWindow& window) {
  for (int64_t i = 0; i < queries.shape[0]; ++i) {
    CopySkinnyVector<float>({queries.At(i), {queries.shape[1]}, {queries.stride[1]}},
                            window.queries.At(i));
  }
}

// Fetches keys from `first` on.
struct NextKeys {
  const CentredKeys& keys;
  int64_t first;
  HWY_INLINE void operator()(int64_t step, int64_t steps) const { keys.Fetch(first, step, steps); }
};

// The dots of a tile of keys with all queries.
HWY_INLINE void TileDots(CentredKeys& keys, const QueryWindow& window, int64_t tile) {
  const int64_t first = tile * kTileTokens;
  const int64_t count = std::min(kTileTokens, keys.tokens() - first);
  QuadTile out = window.TileAt(tile);
  for (int64_t done = 0; done < count; done += kChunkTokens) {
    keys.LoadCentred(first + done, std::min(kChunkTokens, count - done));
    SkinnyDots<RowPower::kOne>({.rows = keys.centred().data,
                                .row_stride = keys.centred().stride[0],
                                .row_count = PadToQuad(keys.centred().shape[0]),
                                .vectors = window.queries.data,
                                .vector_stride = window.queries.stride[0],
                                .vector_count = window.queries.shape[0],
                                .n = keys.head_dim()},
                               out, NextKeys{keys, first + done + kChunkTokens});
    out.data += kChunkTokens / kQuad * out.stride;
  }
}

// Tokens that a query does not see, and those past the end, have no dot.
void HideFuture(const QueryWindow& window, int64_t tile) {
  const int64_t first = tile * kTileTokens;
  const QuadTile dots = window.TileAt(tile);
  for (int64_t token = std::max(first, window.prefix); token < first + kTileTokens; ++token) {
    float* row = dots.At((token - first) / kQuad, 0) + (token - first) % kQuad;
    const int64_t blind = std::min(token - window.prefix, window.queries.shape[0]);
    for (int64_t i = 0; i < blind; ++i) row[i * kQuad] = kNoScore;
  }
}

// The largest finite dot of each query in the tile.
HWY_INLINE void TileLargest(const QueryWindow& window, int64_t tile) {
  const FloatTag d;
  const QuadTile dots = window.TileAt(tile);
  float* HWY_RESTRICT spread = window.spread;
  for (int64_t i = 0; i < window.padded; i += static_cast<int64_t>(hn::MaxLanes(d))) {
    auto largest = hn::Set(d, -std::numeric_limits<float>::infinity());
    for (int64_t quad = 0; quad < kTileQuads; ++quad) {
      const auto dot = hn::Load(d, dots.At(quad, 0) + i);
      largest = hn::IfThenElse(hn::And(hn::IsFinite(dot), hn::Gt(dot, largest)), dot, largest);
    }
    hn::Store(largest, d, spread + i);
  }
  for (int64_t i = 0; i < window.queries.shape[0] * kQuad; i += kQuad) {
    const float largest = *std::max_element(spread + i, spread + i + kQuad);
    std::fill(spread + i, spread + i + kQuad, largest);
    window.largest(tile, i / kQuad) = double{largest};
  }
}

// Turns the dots of a tile into exponentials and leaves their sums.
HWY_INLINE void TileExponentials(const QueryWindow& window, int64_t tile, float scale) {
  const FloatTag d;
  const hn::Half<FloatTag> half;
  const hn::Rebind<double, decltype(half)> wide;
  const QuadTile dots = window.TileAt(tile);
  const auto step = static_cast<int64_t>(hn::MaxLanes(d));
  constexpr int64_t kRounds = kLanes / kQuad;  // quads to a round of the 16 lanes
  for (int64_t i = 0; i < window.padded; i += step) {
    const auto largest = hn::Load(d, window.spread + i);
    for (int64_t round = 0; round < kRounds; ++round) {
      auto lower = hn::Zero(wide), upper = lower;
      for (int64_t quad = round; quad < kTileQuads; quad += kRounds) {
        float* at = dots.At(quad, 0) + i;
        const auto dot = hn::Load(d, at);
        const auto finite = hn::IsFinite(dot);
        const auto e = VectorExpFloat(d, hn::Mul(hn::Sub(dot, largest), hn::Set(d, scale)));
        hn::Store(hn::IfThenElse(finite, e, hn::Set(d, kNoScore)), d, at);
        const auto counted = hn::IfThenElseZero(finite, e);
        lower = hn::Add(lower, hn::PromoteTo(wide, hn::LowerHalf(half, counted)));
        upper = hn::Add(upper, hn::PromoteTo(wide, hn::UpperHalf(half, counted)));
      }
      hn::Store(lower, wide, window.lanes + round * window.padded + i);
      hn::Store(upper, wide, window.lanes + round * window.padded + i + step / 2);
    }
  }
  for (int64_t i = 0; i < window.padded; i += kQuad) {
    double lanes[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = window.lanes[lane / kQuad * window.padded + i + lane % kQuad];
    }
    window.sums(tile, i / kQuad) = TreeSum(lanes);
  }
}

// sums become weights: the probability of a token whose exponential is 1.
void WeighTiles(const QueryWindow& window, double scale) {
  const TokenTag d;
  for (int64_t i = 0; i < window.sums.stride[0]; i += TokenStep()) {
    TokenVec largest = hn::Set(d, -kRowInfinity);
    for (int64_t tile = 0; tile < window.tiles; ++tile) {
      const TokenVec of_tile = hn::Load(d, window.largest.At(tile, i));
      largest = hn::IfThenElse(hn::Gt(of_tile, largest), of_tile, largest);
    }
    TokenVec sum = hn::Zero(d);
    for (int64_t tile = 0; tile < window.tiles; ++tile) {
      const TokenVec below = hn::Sub(hn::Load(d, window.largest.At(tile, i)), largest);
      const TokenVec weight = VectorExp(d, hn::Mul(below, hn::Set(d, scale)));
      sum = hn::MulAdd(hn::Load(d, window.sums.At(tile, i)), weight, sum);
      hn::Store(weight, d, window.sums.At(tile, i));
    }
    for (int64_t tile = 0; tile < window.tiles; ++tile) {
      double* weight = window.sums.At(tile, i);
      hn::Store(hn::Div(hn::Load(d, weight), sum), d, weight);
    }
  }
}

// shares [prefix up to a tile] = mean over the queries of their softmax attention.
HWY_INLINE void AverageAttention(const QueryWindow& window, double* HWY_RESTRICT shares) {
  const hn::CappedTag<double, kQuad> d;
  const hn::Rebind<float, decltype(d)> narrow;
  const int64_t queries = window.queries.shape[0];
  const auto divisor = hn::Set(d, static_cast<double>(queries));
  for (int64_t token = 0; token < window.prefix; token += static_cast<int64_t>(hn::MaxLanes(d))) {
    const int64_t tile = token / kTileTokens;
    const float* row = window.TileAt(tile).At(token % kTileTokens / kQuad, 0) + token % kQuad;
    const double* weights = window.sums.At(tile);
    auto sum = hn::Zero(d);
    for (int64_t i = 0; i < queries; ++i) {
      const auto e = hn::PromoteTo(d, hn::Load(narrow, row + i * kQuad));
      sum = hn::MulAdd(e, hn::Set(d, weights[i]), sum);
    }
    hn::Store(hn::Div(sum, divisor), d, shares + token);
  }
}

// Attention of one query head, whose queries `window` holds.
absl::Status FillShares(const Runner& runner, CentredKeys& keys, const QueryWindow& window,
                        double* shares) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(keys.head_dim()));
  for (int64_t tile = 0; tile < window.tiles; ++tile) {
    KVERN_RETURN_IF_ERROR(runner.Check());
    TileDots(keys, window, tile);
    HideFuture(window, tile);
    TileLargest(window, tile);
    TileExponentials(window, tile, static_cast<float>(scale));
  }
  WeighTiles(window, scale);
  AverageAttention(window, shares);
  return absl::OkStatus();
}

// What the tokens around `token` make of it: outside is 0 for the average, nothing for the maximum,
// and NaN, which has no attention to share, takes nothing away. shares: [-reach, prefix + reach),
// NaN outside.
HWY_INLINE TokenVec Pooled(const WindowAttentionArgs& args, const double* shares) {
  const TokenTag d;
  const int64_t reach = args.pool_width / 2;
  TokenVec sum = hn::Zero(d), largest = hn::Set(d, -kRowInfinity);
  for (int64_t near = -reach; near <= reach; ++near) {
    const TokenVec share = hn::LoadU(d, shares + near);
    sum = hn::IfThenElse(hn::IsNaN(share), sum, hn::Add(sum, share));
    largest = hn::IfThenElse(hn::Gt(share, largest), share, largest);
  }
  const TokenVec own = hn::LoadU(d, shares);
  const TokenVec mean = hn::Div(sum, hn::Set(d, static_cast<double>(args.pool_width)));
  const TokenVec pooled = args.pool == PoolKind::kAverage ? mean : largest;
  return hn::IfThenElse(hn::IsNaN(own), own, pooled);
}

// Adds the pooled shares of one query head to the group's.
HWY_INLINE void AddPooled(const WindowAttentionArgs& args, const double* shares, int64_t prefix,
                          double* group) {
  const TokenTag d;
  for (int64_t token = 0; token < prefix; token += TokenStep()) {
    const TokenVec share = Pooled(args, shares + token);
    const TokenVec reduced = hn::Load(d, group + token);
    hn::Store(
        args.group == GroupReduce::kMean ? hn::Add(reduced, share) : StickyMax(reduced, share), d,
        group + token);
  }
}

absl::Status WindowAttentionHead(const HeadProblem& problem, const WindowAttentionArgs& args,
                                 ScoreView scores) {
  const auto [runner, scratch, layer, head] = problem;
  const KvRef& ref = args.keys[layer];
  const int64_t tokens = TokensOf(ref, head, scores.shape[2]);
  const int64_t group_size = args.queries.shape[1] / scores.shape[1];
  const QueryWindow window = TakeWindow(scratch, args, tokens);
  CentredKeys keys(problem, ref, tokens);
  const int64_t prefix = window.prefix;
  const int64_t margin = PadToLanes(args.pool_width / 2);
  const int64_t padded = PadToLanes(prefix);
  double* shares = scratch.Take<double>(padded + 2 * margin);
  double* group = scratch.Take<double>(padded);
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  const bool mean = args.group == GroupReduce::kMean;
  std::fill(group, group + padded, mean ? 0.0 : -kRowInfinity);
  std::fill(shares, shares + padded + 2 * margin, kRowNaN);
  keys.FindReference(/*mask=*/nullptr);
  for (int64_t g = 0; g < group_size && prefix > 0; ++g) {
    const int64_t q_head = head * group_size + g;
    FillWindow({args.queries.At(layer, q_head),
                {args.queries.shape[2], ref.head_dim},
                {args.queries.stride[2], args.queries.stride[3]}},
               window);
    KVERN_RETURN_IF_ERROR(FillShares(runner, keys, window, shares + margin));
    std::fill(shares + margin + prefix, shares + margin + padded, kRowNaN);
    AddPooled(args, shares + margin, prefix, group);
  }
  for (int64_t token = 0; token < prefix && mean; ++token) {
    group[token] /= static_cast<double>(group_size);
  }
  StoreScores(group, prefix, ScoreRow(scores, problem));
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(WindowAttentionHead);

absl::Status WindowAttention(Runner& runner, const WindowAttentionArgs& args, ScoreView scores) {
  return ForEachHead(runner, scores.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(WindowAttentionHead)(problem, args, scores);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
