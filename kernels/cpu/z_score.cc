// Scores become f64 once; mean, deviation and quotient run on that row.
#include "kernels/cpu/z_score.h"

#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/z_score.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

absl::Status ZScoreHead(const HeadProblem& problem, MaskView candidates, ScoreView scores) {
  KVERN_RETURN_IF_ERROR(problem.runner.Check());
  const TokenTag d;
  const int64_t tokens = scores.shape[2];
  double* row = problem.scratch.Take<double>(PadToLanes(tokens));
  KVERN_RETURN_IF_ERROR(problem.scratch.Taken());
  const TensorView<float, 1> out = ScoreRow(scores, problem);
  WidenScores(out, tokens, row);
  const uint8_t* mask = candidates.At(problem.layer, problem.head);
  const Spread spread = SpreadOf(row, mask, tokens);
  for (int64_t token = 0; token < tokens; token += TokenStep()) {
    hn::Store(Standardise(spread, hn::Load(d, row + token)), d, row + token);
  }
  StoreScoreRow(row, tokens, out);
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(ZScoreHead);

absl::Status ZScore(Runner& runner, MaskView candidates, ScoreView scores) {
  return ForEachHead(runner, scores.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(ZScoreHead)(problem, candidates, scores);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
