// One vector operation per score; the last few scores go one by one.
#include "kernels/cpu/elementwise.h"

#include <atomic>
#include <cmath>
#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/heads.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

HWY_INLINE V OneNaN(V score) {
  return hn::IfThenElse(hn::IsNaN(score), hn::Set(D(), kNoScore), score);
}
HWY_INLINE float OneNaN(float score) { return std::isnan(score) ? kNoScore : score; }

absl::Status ScaleHead(const HeadProblem& problem, float factor, ScoreView scores) {
  KVERN_RETURN_IF_ERROR(problem.runner.Check());
  const D d;
  const int64_t step = static_cast<int64_t>(hn::MaxLanes(d));
  const TensorView<float, 1> row = ScoreRow(scores, problem);
  const V by = hn::Set(d, factor);
  int64_t token = 0;
  for (; row.stride[0] == 1 && token + step <= row.shape[0]; token += step) {
    hn::StoreU(OneNaN(hn::Mul(by, hn::LoadU(d, row.data + token))), d, row.data + token);
  }
  for (; token < row.shape[0]; ++token) row(token) = OneNaN(factor * row(token));
  return absl::OkStatus();
}

HWY_INLINE V Blended(BlendKind kind, V into, V score) {
  const V sum = hn::Add(into, score);
  if (kind == BlendKind::kSum) return OneNaN(sum);
  const V larger = hn::IfThenElse(hn::Gt(into, score), into, score);
  // A comparison would hide the NaN of either.
  const auto either = hn::Or(hn::IsNaN(into), hn::IsNaN(score));
  return hn::IfThenElse(either, hn::Set(D(), kNoScore), larger);
}
HWY_INLINE float Blended(BlendKind kind, float into, float score) {
  const float sum = into + score;
  if (kind == BlendKind::kSum) return OneNaN(sum);
  if (std::isnan(into) || std::isnan(score)) return kNoScore;
  return into > score ? into : score;
}

absl::Status BlendHead(const HeadProblem& problem, BlendKind kind, ConstScoreView scores,
                       ScoreView accumulated) {
  KVERN_RETURN_IF_ERROR(problem.runner.Check());
  const D d;
  const int64_t step = static_cast<int64_t>(hn::MaxLanes(d));
  const TensorView<float, 1> row = ScoreRow(accumulated, problem);
  const float* from = scores.At(problem.layer, problem.head);
  const bool dense = row.stride[0] == 1 && scores.stride[2] == 1;
  int64_t token = 0;
  for (; dense && token + step <= row.shape[0]; token += step) {
    float* into = row.data + token;
    hn::StoreU(Blended(kind, hn::LoadU(d, into), hn::LoadU(d, from + token)), d, into);
  }
  for (; token < row.shape[0]; ++token) {
    row(token) = Blended(kind, row(token), from[token * scores.stride[2]]);
  }
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(ScaleHead);
HWY_EXPORT(BlendHead);

absl::Status Scale(Runner& runner, float factor, ScoreView scores) {
  return ForEachHead(runner, scores.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(ScaleHead)(problem, factor, scores);
  });
}

absl::Status Blend(Runner& runner, BlendKind kind, ConstScoreView scores, ScoreView accumulated) {
  return ForEachHead(runner, accumulated.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(BlendHead)(problem, kind, scores, accumulated);
  });
}

// The compiler turns the row into masked stores by itself.
absl::Status HideScores(Runner& runner, const HideScoresArgs& args) {
  std::atomic<int64_t> nan_candidates{0};
  const absl::Status done = ForEachHead(runner, args.scores.shape, [&](const HeadProblem& problem) {
    KVERN_RETURN_IF_ERROR(problem.runner.Check());
    const TensorView<float, 1> row = ScoreRow(args.scores, problem);
    const uint8_t* candidates = args.candidates.At(problem.layer, problem.head);
    int64_t found = 0;
    for (int64_t token = 0; token < row.shape[0]; ++token) {
      const bool candidate = candidates[token * args.candidates.stride[2]] != 0;
      found += candidate && std::isnan(row(token)) ? 1 : 0;
      row(token) = candidate ? row(token) : kNoScore;
    }
    nan_candidates += found;
    return absl::OkStatus();
  });
  *args.nan_candidates = nan_candidates;
  return done;
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
