// A row of f64 per head; only norms and logarithms are worth a vector.
#include "kernels/cpu/attention_mass.h"

#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_mass.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rows-inl.h"
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Finite for a mass or a norm of 0, so that one empty token does not decide the spread of its row.
HWY_INLINE void FlooredLogs(double* row, int64_t tokens) {
  constexpr double kFloor = 1e-30;
  const TokenTag d;
  const TokenVec floor = hn::Set(d, kFloor);
  for (int64_t token = 0; token < tokens; token += TokenStep()) {
    const TokenVec x = hn::Load(d, row + token);
    hn::Store(VectorLog(d, hn::IfThenElse(hn::Lt(x, floor), floor, x)), d, row + token);
  }
}

absl::Status AttentionMassHead(const HeadProblem& problem, const AttentionMassArgs& args,
                               ScoreView scores) {
  const auto [runner, scratch, layer, head] = problem;
  const int64_t tokens = scores.shape[2];
  double* row = scratch.Take<double>(PadToLanes(tokens));
  TensorView<float, 2> tile;
  if (args.value_norm) {
    tile = TakeTile<float>(scratch, kChunkTokens, args.values[layer].head_dim);
  }
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  for (int64_t first = 0; first < tokens; first += kChunkTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(runner, first));
    const int64_t count = std::min(kChunkTokens, tokens - first);
    for (int64_t token = first; token < first + count; ++token) {
      row[token] = args.mass(layer, head, token);
      if (args.per_visible) row[token] /= args.visible(layer, head, token);
    }
    if (!args.value_norm) continue;
    float norms[kChunkTokens];
    NormReader{args.values[layer], head, tile}.Read(first, count, norms);
    for (int64_t r = 0; r < count; ++r) row[first + r] *= double{norms[r]};
  }
  EndRow(row, tokens);
  if (args.log) FlooredLogs(row, tokens);
  StoreScores(row, tokens, ScoreRow(scores, problem));
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(AttentionMassHead);

absl::Status AttentionMass(Runner& runner, const AttentionMassArgs& args, ScoreView scores) {
  return ForEachHead(runner, scores.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(AttentionMassHead)(problem, args, scores);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
