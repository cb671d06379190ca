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
#include "kernels/cpu/column_dots-inl.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int64_t kPartsPerTile = kTileTokens / kColumnTokens;

// The queries of one query head and what they make of the keys.
struct QueryWindow {
  VectorPanels queries;  // [window]
  int64_t prefix;        // tokens before the window
  int64_t tiles;         // of kTileTokens
  float* dots;           // [kPartsPerTile, window, kColumnTokens] of one tile
  float* exponentials;   // [tiles, kPartsPerTile, window, kColumnTokens] e^(logit - largest
                         // of the tile)
  TensorView<double, 2> largest;  // [tiles, padded window] dots
  TensorView<double, 2> sums;     // [tiles, padded window] of exponentials, then weights

  // Where [window, kColumnTokens] of a part of a tile begin.
  HWY_INLINE float* DotsOf(int64_t part) const {
    return dots + part * queries.count() * kColumnTokens;
  }
  HWY_INLINE float* ExponentialsOf(int64_t tile, int64_t part) const {
    return exponentials + (tile * kPartsPerTile + part) * queries.count() * kColumnTokens;
  }
};

QueryWindow TakeWindow(Scratch& scratch, const WindowAttentionArgs& args, int64_t tokens) {
  const int64_t size = args.queries.shape[2];
  const int64_t prefix = std::max<int64_t>(tokens - size, 0);
  const int64_t tiles = prefix == 0 ? 0 : (tokens + kTileTokens - 1) / kTileTokens;
  return {.queries = VectorPanels(scratch, size, args.queries.shape[3]),
          .prefix = prefix,
          .tiles = tiles,
          .dots = scratch.Take<float>(kTileTokens * size),
          .exponentials = scratch.Take<float>(tiles * kTileTokens * size),
          .largest = TakeTile<double>(scratch, tiles, size),
          .sums = TakeTile<double>(scratch, tiles, size)};
}

// queries: [window, head_dim].
void FillWindow(TensorView<const float, 2> queries, const QueryWindow& window) {
  for (int64_t i = 0; i < queries.shape[0]; ++i) {
    window.queries.Fill<float>(i, {queries.At(i), {queries.shape[1]}, {queries.stride[1]}});
  }
}

// Fetches the keys from `first` on, a token at a time.
struct NextKeys {
  const CentredKeys& keys;
  int64_t first;
  int64_t fetched = 0;
  HWY_INLINE void Do(int64_t done, int64_t all) {
    for (; fetched * all < kColumnTokens * done; ++fetched) keys.Fetch(first + fetched);
  }
};

// The dots of a tile of keys with all queries.
HWY_INLINE void TileDots(CentredKeys& keys, const QueryWindow& window, int64_t tile) {
  for (int64_t part = 0; part < kPartsPerTile; ++part) {
    const int64_t first = tile * kTileTokens + part * kColumnTokens;
    if (first >= keys.tokens()) return;
    keys.Load(first);
    NextKeys next = {keys, first + kColumnTokens};
    ColumnDots<KeyPower::kOne>(keys.columns(), window.queries, window.DotsOf(part), next);
  }
}

// Tokens that a query does not see, and those past the end, have no dot.
void HideFuture(const QueryWindow& window, int64_t tile) {
  const int64_t first = tile * kTileTokens;
  for (int64_t token = std::max(first, window.prefix); token < first + kTileTokens; ++token) {
    float* dot = window.DotsOf((token - first) / kColumnTokens) + token % kColumnTokens;
    const int64_t blind = std::min(token - window.prefix, window.queries.count());
    for (int64_t i = 0; i < blind; ++i) dot[i * kColumnTokens] = kNoScore;
  }
}

// The largest finite dot of query i in the tile.
HWY_INLINE float TileLargest(const QueryWindow& window, int64_t i) {
  const ColumnTag d;
  const ColumnVec none = hn::Set(d, -std::numeric_limits<float>::infinity());
  ColumnVec largest = none;
  for (int64_t part = 0; part < kPartsPerTile; ++part) {
    const float* dots = window.DotsOf(part) + i * kColumnTokens;
    for (int64_t token = 0; token < kColumnTokens; token += kColumnLanes) {
      const ColumnVec dot = hn::Load(d, dots + token);
      largest = hn::Max(largest, hn::IfThenElse(hn::IsFinite(dot), dot, none));
    }
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

// What the exponentials of a query in a tile are made with.
struct TileScale {
  float largest;  // dot
  float scale;
};

// Turns the dots of query i in a tile into exponentials; their sum.
HWY_INLINE double TileExponentials(const QueryWindow& window, int64_t tile, int64_t i,
                                   const TileScale& by) {
  const ColumnTag d;
  const hn::Half<ColumnTag> half;
  const hn::Rebind<double, decltype(half)> wide;
  constexpr int kRegisters = kLanes / kColumnLanes;  // to a round of the 16 lanes
  hn::Vec<decltype(wide)> sum[2 * kRegisters];
  Unroll<2 * kRegisters>([&](auto k) KVERN_INLINE_STEP { sum[k] = hn::Zero(wide); });
  const ColumnVec largest = hn::Set(d, by.largest), scale = hn::Set(d, by.scale);
  for (int64_t part = 0; part < kPartsPerTile; ++part) {
    const float* dots = window.DotsOf(part) + i * kColumnTokens;
    float* HWY_RESTRICT out = window.ExponentialsOf(tile, part) + i * kColumnTokens;
    for (int64_t token = 0; token < kColumnTokens; token += kLanes) {
      Unroll<kRegisters>([&](auto k) KVERN_INLINE_STEP {
        const int64_t at = token + k * kColumnLanes;
        const ColumnVec dot = hn::Load(d, dots + at);
        const auto finite = hn::IsFinite(dot);
        const ColumnVec e = VectorExpFloat(d, hn::Mul(hn::Sub(dot, largest), scale));
        hn::Store(hn::IfThenElse(finite, e, hn::Set(d, kNoScore)), d, out + at);
        const ColumnVec counted = hn::IfThenElseZero(finite, e);
        sum[2 * k] = hn::Add(sum[2 * k], hn::PromoteTo(wide, hn::LowerHalf(half, counted)));
        sum[2 * k + 1] = hn::Add(sum[2 * k + 1], hn::PromoteTo(wide, hn::UpperHalf(half, counted)));
      });
    }
  }
  HWY_ALIGN double lanes[kLanes];
  Unroll<2 * kRegisters>(
      [&](auto k) KVERN_INLINE_STEP { hn::Store(sum[k], wide, lanes + k * kColumnLanes / 2); });
  return LaneTreeSum(lanes);
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

// shares [prefix up to kColumnTokens] = mean over the queries of their softmax attention.
HWY_INLINE void AverageAttention(const QueryWindow& window, double* HWY_RESTRICT shares) {
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(d));
  constexpr int kRegisters = static_cast<int>(kColumnTokens) / kStep;
  const int64_t queries = window.queries.count();
  const TokenVec divisor = hn::Set(d, static_cast<double>(queries));
  for (int64_t token = 0; token < window.prefix; token += kColumnTokens) {
    const int64_t tile = token / kTileTokens;
    const float* part = window.ExponentialsOf(tile, token % kTileTokens / kColumnTokens);
    const double* weights = window.sums.At(tile);
    TokenVec sum[kRegisters];
    Unroll<kRegisters>([&](auto k) KVERN_INLINE_STEP { sum[k] = hn::Zero(d); });
    for (int64_t i = 0; i < queries; ++i) {
      const TokenVec weight = hn::Set(d, weights[i]);
      Unroll<kRegisters>([&](auto k) KVERN_INLINE_STEP {
        const auto e = hn::PromoteTo(d, hn::Load(narrow, part + i * kColumnTokens + k * kStep));
        sum[k] = hn::MulAdd(e, weight, sum[k]);
      });
    }
    Unroll<kRegisters>([&](auto k) KVERN_INLINE_STEP {
      hn::Store(hn::Div(sum[k], divisor), d, shares + token + k * kStep);
    });
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
    for (int64_t i = 0; i < window.queries.count(); ++i) {
      const float largest = TileLargest(window, i);
      window.largest(tile, i) = double{largest};
      window.sums(tile, i) =
          TileExponentials(window, tile, i, {largest, static_cast<float>(scale)});
    }
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
  const int64_t padded = PadToColumns(prefix);
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
  StoreScoreRow(group, prefix, ScoreRow(scores, problem));
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
