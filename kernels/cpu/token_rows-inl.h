// Rows of one f64 per token: sums in the order of ruling 6, spread, softmax, group reduction.
// Every row is readable and writable up to a multiple of 16 tokens.
#if defined(KVERN_KERNELS_CPU_TOKEN_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVERN_KERNELS_CPU_TOKEN_ROWS_INL_H_
#undef KVERN_KERNELS_CPU_TOKEN_ROWS_INL_H_
#else
#define KVERN_KERNELS_CPU_TOKEN_ROWS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernels/backend.h"
#include "kernels/base/lanes.h"
#include "kernels/base/math.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/unroll-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using TokenTag = hn::ScalableTag<double>;
using TokenVec = hn::Vec<TokenTag>;
inline constexpr double kRowNaN = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kRowInfinity = std::numeric_limits<double>::infinity();

HWY_INLINE int64_t TokenStep() { return static_cast<int64_t>(hn::MaxLanes(TokenTag())); }

// Sum over [0, tokens) by `add(sum, token)`, which returns the lanes' next sums.
template <class Add>
HWY_INLINE double SumOverTokens(int64_t tokens, Add add) {
  const TokenTag d;
  double total = 0;
  for (int64_t tile = 0; tile < tokens; tile += kTileTokens) {
    const int64_t end = std::min(tile + kTileTokens, tokens);
    HWY_ALIGN double lanes[kLanes];
    for (int64_t part = 0; part < kLanes; part += TokenStep()) {
      TokenVec sum = hn::Zero(d);
      for (int64_t token = tile + part; token < end; token += kLanes) sum = add(sum, token);
      hn::Store(sum, d, lanes + part);
    }
    total += TreeSum(lanes);
  }
  return total;
}

// Marks padding and what is out of the mask by NaN, so that one test serves all.
HWY_INLINE void EndRow(double* row, int64_t tokens) {
  std::fill(row + tokens, row + PadToLanes(tokens), kRowNaN);
}

struct Spread {
  double mean = 0;
  double deviation = 0;
};

// Tokens [token, token + TokenStep()) whose mask is set and whose value is finite.
HWY_INLINE hn::Mask<TokenTag> Counted(const uint8_t* mask, TokenVec value) {
  const TokenTag d;
  const hn::Rebind<int32_t, TokenTag> words;
  const auto bytes = hn::LoadU(hn::Rebind<uint8_t, TokenTag>(), mask);
  const auto set = hn::Gt(hn::PromoteTo(d, hn::PromoteTo(words, bytes)), hn::Zero(d));
  return hn::And(set, hn::IsFinite(value));
}

// SumOverTokens of what is counted: add(sum, value, counted) returns the lanes' next sums. All
// lanes of a round are in flight at once.
template <class Add>
HWY_INLINE double SumOverCounted(const double* values, const uint8_t* mask, int64_t tokens,
                                 Add add) {
  const TokenTag d;
  constexpr int kStep = static_cast<int>(hn::MaxLanes(d));
  constexpr int kParts = kLanes / kStep;
  double total = 0;
  uint8_t last[kLanes] = {};  // the mask of the last round, which may end early
  std::copy(mask + tokens / kLanes * kLanes, mask + tokens, last);
  for (int64_t tile = 0; tile < tokens; tile += kTileTokens) {
    const int64_t end = std::min(tile + kTileTokens, tokens);
    TokenVec sum[kParts];
    Unroll<kParts>([&](auto k) KVERN_INLINE_STEP { sum[k] = hn::Zero(d); });
    for (int64_t token = tile; token < end; token += kLanes) {
      const uint8_t* round = token + kLanes <= tokens ? mask + token : last;
      Unroll<kParts>([&](auto k) KVERN_INLINE_STEP {
        const TokenVec x = hn::Load(d, values + token + k * kStep);
        sum[k] = add(sum[k], x, Counted(round + k * kStep, x));
      });
    }
    HWY_ALIGN double lanes[kLanes];
    Unroll<kParts>([&](auto k) KVERN_INLINE_STEP { hn::Store(sum[k], d, lanes + k * kStep); });
    total += TreeSum(lanes);
  }
  return total;
}

// Mean and biased deviation of the finite values whose mask is set; both 0 without any.
HWY_INLINE Spread SpreadOf(const double* values, const uint8_t* mask, int64_t tokens) {
  const TokenTag d;
  int64_t count = 0;
  const double sum =
      SumOverCounted(values, mask, tokens,
                     [&](TokenVec lanes, TokenVec x, hn::Mask<TokenTag> counted) KVERN_INLINE_STEP {
                       count += static_cast<int64_t>(hn::CountTrue(d, counted));
                       return hn::IfThenElse(counted, hn::Add(lanes, x), lanes);
                     });
  Spread spread;
  if (count == 0) return spread;
  spread.mean = sum / static_cast<double>(count);
  const TokenVec mean = hn::Set(d, spread.mean);
  const double squares =
      SumOverCounted(values, mask, tokens,
                     [&](TokenVec lanes, TokenVec x, hn::Mask<TokenTag> counted) KVERN_INLINE_STEP {
                       const TokenVec distance = hn::Sub(x, mean);
                       return hn::IfThenElse(counted, hn::MulAdd(distance, distance, lanes), lanes);
                     });
  spread.deviation = std::sqrt(squares / static_cast<double>(count));
  return spread;
}

// 0 for a row without spread (ruling 7); NaN for what is not finite.
HWY_INLINE TokenVec Standardise(const Spread& spread, TokenVec value) {
  const TokenTag d;
  constexpr double kSmallestDeviation = 1e-6;
  const TokenVec z =
      spread.deviation < kSmallestDeviation
          ? hn::Zero(d)
          : hn::Div(hn::Sub(value, hn::Set(d, spread.mean)), hn::Set(d, spread.deviation));
  return hn::IfThenElse(hn::IsFinite(value), z, hn::Set(d, kRowNaN));
}

// The larger of the two; NaN once either is.
HWY_INLINE TokenVec StickyMax(TokenVec largest, TokenVec value) {
  return hn::IfThenElse(hn::Or(hn::Gt(value, largest), hn::IsNaN(value)), value, largest);
}

struct SoftMax {
  double largest = -kRowInfinity;
  double sum = 0;  // of e^(logit - largest)
  double LogSum() const { return largest + Log(sum); }
};

// Makes what is not finite NaN, then finds the largest of the rest.
HWY_INLINE double CleanAndFindLargest(double* logits, int64_t tokens) {
  const TokenTag d;
  EndRow(logits, tokens);
  TokenVec largest = hn::Set(d, -kRowInfinity);
  for (int64_t token = 0; token < tokens; token += TokenStep()) {
    const TokenVec x = hn::Load(d, logits + token);
    const auto finite = hn::IsFinite(x);
    hn::Store(hn::IfThenElse(finite, x, hn::Set(d, kRowNaN)), d, logits + token);
    largest = hn::IfThenElse(hn::And(finite, hn::Gt(x, largest)), x, largest);
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

// Softmax over the finite logits; others become NaN. With `exponentials`, [tokens] of them are
// stored there (may be `logits` itself).
HWY_INLINE SoftMax SoftMaxOf(double* logits, int64_t tokens, double* exponentials) {
  const TokenTag d;
  SoftMax soft_max;
  soft_max.largest = CleanAndFindLargest(logits, tokens);
  const TokenVec largest = hn::Set(d, soft_max.largest);
  soft_max.sum = SumOverTokens(tokens, [&](TokenVec lanes, int64_t token) HWY_ATTR {
    const TokenVec e = VectorExp(d, hn::Sub(hn::Load(d, logits + token), largest));
    if (exponentials != nullptr) hn::Store(e, d, exponentials + token);
    return hn::IfThenElse(hn::IsNaN(e), lanes, hn::Add(lanes, e));
  });
  return soft_max;
}

// StoreScores (kernels/cpu/heads.h), a vector at a time.
HWY_INLINE void StoreScoreRow(const double* row, int64_t tokens, TensorView<float, 1> scores) {
  const TokenTag d;
  const hn::Rebind<float, TokenTag> narrow;
  int64_t token = 0;
  for (; scores.stride[0] == 1 && token + TokenStep() <= tokens; token += TokenStep()) {
    const auto score = hn::DemoteTo(narrow, hn::Load(d, row + token));
    const auto none = hn::Set(narrow, kNoScore);
    hn::StoreU(hn::IfThenElse(hn::IsFinite(score), score, none), narrow, scores.data + token);
  }
  TensorView<float, 1> rest = scores;
  rest.data = &scores(token);
  rest.shape[0] -= token;
  StoreScores(row + token, tokens - token, rest);
}

// [tokens] strided f32 to a row.
HWY_INLINE void WidenScores(TensorView<const float, 1> scores, int64_t tokens, double* row) {
  for (int64_t token = 0; token < tokens; ++token) row[token] = scores(token);
  EndRow(row, tokens);
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
