// Squares are summed while the row is still in the first cache.
#include "kernels/cpu/row_norms.h"

#include <cstdint>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/row_norms.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/heads.h"
#include "kernels/cpu/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

absl::Status RowNormsHead(const HeadProblem& problem, LayerRefs rows, ScoreView norms) {
  const KvRef& ref = rows[problem.layer];
  const int64_t tokens = TokensOf(ref, problem.head, norms.shape[2]);
  const NormReader reader = {ref, problem.head,
                             TakeTile<float>(problem.scratch, kChunkTokens, ref.head_dim)};
  KVERN_RETURN_IF_ERROR(problem.scratch.Taken());
  const TensorView<float, 1> out = ScoreRow(norms, problem);
  for (int64_t first = 0; first < norms.shape[2]; first += kChunkTokens) {
    KVERN_RETURN_IF_ERROR(CheckAtTile(problem.runner, first));
    const int64_t count = std::min(kChunkTokens, norms.shape[2] - first);
    float chunk[kChunkTokens];
    reader.Read(first, std::clamp<int64_t>(tokens - first, 0, count), chunk);
    for (int64_t r = 0; r < count; ++r) {
      const bool held = first + r < tokens && std::isfinite(chunk[r]);
      out(first + r) = held ? chunk[r] : kNoScore;
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(RowNormsHead);

absl::Status RowNorms(Runner& runner, LayerRefs rows, ScoreView norms) {
  return ForEachHead(runner, norms.shape, [&](const HeadProblem& problem) {
    return HWY_DYNAMIC_DISPATCH(RowNormsHead)(problem, rows, norms);
  });
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
