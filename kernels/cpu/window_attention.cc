// The logits of one query head at a time: all its queries share each pass over the keys.
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
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The queries of one query head and what they make of the keys.
struct QueryWindow {
  TensorView<float, 2> queries;  // [window, padded head_dim]
  double* constant;              // [window] <query, reference key>
  TensorView<float, 2> dots;     // [window, kChunkTokens]
  TensorView<double, 2> logits;  // [window, padded tokens]
};

// queries: [window, head_dim].
void FillWindow(TensorView<const float, 2> queries, const CentredKeys& keys, QueryWindow& window) {
  for (int64_t i = 0; i < queries.shape[0]; ++i) {
    float* query = window.queries.At(i);
    CopyVector<float>({queries.At(i), {queries.shape[1]}, {queries.stride[1]}}, query);
    window.constant[i] = keys.ReferenceDot(query, queries.shape[1]);
  }
}

// logits(i, token) = <query i, key> / sqrt(head_dim), for every token, seen by the query or not.
absl::Status FillLogits(const Runner& runner, CentredKeys& keys, const QueryWindow& window) {
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  const TokenVec scale = hn::Set(d, 1.0 / std::sqrt(static_cast<double>(keys.head_dim())));
  for (int64_t first = 0; first < keys.tokens(); first += kChunkTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(runner, first));
    const int64_t count = std::min(kChunkTokens, keys.tokens() - first);
    keys.Load(first, count);
    LaneDots<float>({.rows = keys.centred().data,
                     .row_stride = keys.centred().stride[0],
                     .row_count = count,
                     .vectors = window.queries.data,
                     .vector_stride = window.queries.stride[0],
                     .vector_count = window.queries.shape[0],
                     .n = keys.head_dim()},
                    window.dots);
    for (int64_t i = 0; i < window.queries.shape[0]; ++i) {
      const TokenVec constant = hn::Set(d, window.constant[i]);
      for (int64_t r = 0; r < kChunkTokens; r += TokenStep()) {
        const TokenVec dot = hn::PromoteTo(d, hn::Load(narrow, window.dots.At(i, r)));
        hn::Store(hn::Mul(hn::Add(dot, constant), scale), d, window.logits.At(i, first + r));
      }
    }
  }
  return absl::OkStatus();
}

// shares [prefix] = mean over the queries of their softmax attention.
void AverageAttention(const QueryWindow& window, int64_t prefix, double* shares) {
  const TokenTag d;
  const int64_t queries = window.logits.shape[0];
  std::fill(shares, shares + PadToLanes(prefix), 0.0);
  for (int64_t i = 0; i < queries; ++i) {
    double* logits = window.logits.At(i);
    const SoftMax soft_max = SoftMaxOf(logits, prefix + i + 1, logits);
    const TokenVec inverse = hn::Set(d, 1.0 / soft_max.sum);
    for (int64_t token = 0; token < prefix; token += TokenStep()) {
      const TokenVec share = hn::Mul(hn::Load(d, logits + token), inverse);
      hn::Store(hn::Add(hn::Load(d, shares + token), share), d, shares + token);
    }
  }
  const TokenVec divisor = hn::Set(d, static_cast<double>(queries));
  for (int64_t token = 0; token < prefix; token += TokenStep()) {
    hn::Store(hn::Div(hn::Load(d, shares + token), divisor), d, shares + token);
  }
}

// What the tokens around `token` make of it: outside is 0 for the average, nothing for the maximum.
HWY_INLINE double Pooled(const WindowAttentionArgs& args, const double* shares, int64_t prefix,
                         int64_t token) {
  if (std::isnan(shares[token])) return kRowNaN;
  const int64_t reach = args.pool_width / 2;
  const int64_t end = std::min(token + reach + 1, prefix);
  double sum = 0;
  double largest = -kRowInfinity;
  for (int64_t near = std::max<int64_t>(token - reach, 0); near < end; ++near) {
    // What has no attention to share does not take its neighbours' away.
    if (std::isnan(shares[near])) continue;
    sum += shares[near];
    largest = shares[near] > largest ? shares[near] : largest;
  }
  return args.pool == PoolKind::kAverage ? sum / static_cast<double>(args.pool_width) : largest;
}

// Adds the pooled shares of one query head to the group's.
void AddPooled(const WindowAttentionArgs& args, const double* shares, int64_t prefix,
               double* group) {
  for (int64_t token = 0; token < prefix; ++token) {
    const double share = Pooled(args, shares, prefix, token);
    double& reduced = group[token];
    if (args.group == GroupReduce::kMean) {
      reduced += share;
    } else {
      reduced = share > reduced || std::isnan(share) ? share : reduced;
    }
  }
}

absl::Status WindowAttentionHead(const HeadProblem& problem, const WindowAttentionArgs& args,
                                 ScoreView scores) {
  const auto [runner, scratch, layer, head] = problem;
  const KvRef& ref = args.keys[layer];
  const int64_t tokens = TokensOf(ref, head, scores.shape[2]);
  const int64_t size = args.queries.shape[2];
  const int64_t prefix = std::max<int64_t>(tokens - size, 0);
  const int64_t group_size = args.queries.shape[1] / scores.shape[1];
  QueryWindow window = {TakeTile<float>(scratch, size, ref.head_dim), scratch.Take<double>(size),
                        TakeTile<float>(scratch, size, kChunkTokens),
                        TakeTile<double>(scratch, size, prefix == 0 ? 0 : tokens)};
  CentredKeys keys(problem, ref, tokens);
  double* shares = scratch.Take<double>(PadToLanes(prefix));
  double* group = scratch.Take<double>(PadToLanes(prefix));
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  const bool mean = args.group == GroupReduce::kMean;
  std::fill(group, group + prefix, mean ? 0.0 : -kRowInfinity);
  keys.FindReference(/*mask=*/nullptr);
  for (int64_t g = 0; g < group_size && prefix > 0; ++g) {
    const int64_t q_head = head * group_size + g;
    FillWindow({args.queries.At(layer, q_head),
                {size, ref.head_dim},
                {args.queries.stride[2], args.queries.stride[3]}},
               keys, window);
    KVERN_RETURN_IF_ERROR(FillLogits(runner, keys, window));
    AverageAttention(window, prefix, shares);
    AddPooled(args, shares, prefix, group);
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
