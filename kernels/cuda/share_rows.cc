// ShareRows of a cohort in one launch: groups are the rows of its grid.
#include "kernels/cuda/share_rows.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {

absl::Status ShareRows(DeviceContext& device, std::span<const ShareRowsArgs> cohort) {
  Op op(device, "share_rows");
  std::vector<ScoreView> scores;
  std::vector<SequenceRows> sequences;
  std::vector<RowGroup> groups;
  std::vector<int64_t> members;
  int64_t first_row = 0;
  for (const ShareRowsArgs& args : cohort) {
    int64_t group_count = 0;
    for (const std::vector<int64_t>& group : *args.groups) {
      if (group.empty()) continue;
      groups.push_back({.first = static_cast<int64_t>(members.size()),
                        .size = static_cast<int32_t>(group.size())});
      for (const int64_t row : group) members.push_back(first_row + row);
      ++group_count;
    }
    scores.push_back(args.scores);
    sequences.push_back({group_count, args.scores.shape[2]});
    first_row += args.scores.shape[0] * args.scores.shape[1];
  }
  ShareRowsParams params;
  params.grid = AddScoreGrid(op, sequences, kShareRowsRun);
  params.mean = !cohort.empty() && cohort.front().reduce == GroupReduce::kMean;
  params.groups = op.Upload(groups);
  params.members = op.Upload(members);
  params.scores = op.AddScores(scores, Access::kReadWrite);
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchShareRows(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
