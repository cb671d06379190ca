// Groups are independent: each worker reduces one, a vector of tokens at a time.
#include "kernels/cpu/share_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/share_rows.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/token_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// `row` counts (layer, kv_head) pairs.
HWY_INLINE TensorView<float, 1> RowOf(ScoreView scores, int64_t row) {
  float* data = scores.At(row / scores.shape[1], row % scores.shape[1]);
  return {data, {scores.shape[2]}, {scores.stride[2]}};
}

absl::Status ShareGroup(const std::vector<int64_t>& group, GroupReduce reduce, ScoreView scores,
                        Scratch& scratch) {
  const TokenTag d;
  const int64_t tokens = scores.shape[2];
  double* shared = scratch.Take<double>(PadToLanes(tokens));
  double* member = scratch.Take<double>(PadToLanes(tokens));
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  const bool mean = reduce == GroupReduce::kMean;
  std::fill(shared, shared + PadToLanes(tokens), mean ? 0.0 : -kRowInfinity);
  for (const int64_t row : group) {
    WidenScores(RowOf(scores, row), tokens, member);
    for (int64_t token = 0; token < tokens; token += TokenStep()) {
      const TokenVec x = hn::Load(d, member + token);
      const TokenVec so_far = hn::Load(d, shared + token);
      hn::Store(mean ? hn::Add(so_far, x) : StickyMax(so_far, x), d, shared + token);
    }
  }
  const double divisor = mean ? static_cast<double>(group.size()) : 1.0;
  for (int64_t token = 0; token < tokens; ++token) {
    const double score = shared[token] / divisor;
    shared[token] = std::isnan(score) ? kRowNaN : score;
  }
  for (const int64_t row : group) {
    const TensorView<float, 1> out = RowOf(scores, row);
    for (int64_t token = 0; token < tokens; ++token) out(token) = static_cast<float>(shared[token]);
  }
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(ShareGroup);

absl::Status ShareRows(Runner& runner, const std::vector<std::vector<int64_t>>& groups,
                       GroupReduce reduce, ScoreView scores) {
  return runner.ForEach(static_cast<int64_t>(groups.size()), [&](int64_t item, int worker) {
    KVERN_RETURN_IF_ERROR(runner.Check());
    Scratch& scratch = runner.ScratchOf(worker);
    scratch.Reset();
    return HWY_DYNAMIC_DISPATCH(ShareGroup)(groups[item], reduce, scores, scratch);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
