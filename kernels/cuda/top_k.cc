// TopK of a cohort in one launch. Counts are checked here, where the masks still are.
#include "kernels/cuda/top_k.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/row_counts.h"
#include "kernels/cuda/score_views.h"

namespace kvern::cuda {
namespace {

// The rows of one sequence; `kept` is the device memory of its keep list.
void AddKeptRows(const TopKArgs& args, int32_t* kept, std::vector<TopKRow>& rows) {
  const std::vector<RowCounts> counts = CountRows(args.candidates, args.forced);
  const std::vector<int64_t>& offsets = args.keep->offsets;
  for (size_t row = 0; row < counts.size(); ++row) {
    const int64_t picks = offsets[row + 1] - offsets[row] - counts[row].forced;
    KVERN_CHECK(picks >= 0 && picks <= counts[row].candidates);
    rows.push_back({kept == nullptr ? nullptr : kept + offsets[row],
                    static_cast<int32_t>(args.scores.shape[2]), static_cast<int32_t>(picks)});
  }
}

}  // namespace

absl::Status TopK(DeviceContext& device, std::span<const TopKArgs> cohort) {
  Op op(device, "top_k");
  std::vector<TopKRow> rows;
  std::vector<ScoreView> scores;
  std::vector<MaskView> candidates;
  std::vector<MaskView> forced;
  for (const TopKArgs& args : cohort) {
    KVERN_CHECK(args.keep->layers == args.scores.shape[0] &&
                args.keep->kv_heads == args.scores.shape[1]);
    AddKeptRows(args, op.Result(std::span<int32_t>(args.keep->tokens)), rows);
    scores.push_back(ReadOnly(args.scores));
    candidates.push_back(args.candidates);
    forced.push_back(args.forced);
  }
  TopKParams params;
  params.rows = op.Upload(rows);
  params.scores = op.AddScores(scores, Access::kRead);
  params.candidates = op.AddMasks(candidates);
  params.forced = op.AddMasks(forced);
  params.row_count = static_cast<int64_t>(rows.size());
  params.newest_wins = cohort.empty() || cohort[0].tie == TieRule::kRecent;
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchTopK(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
