// RowNorms of a cohort in one launch.
#include "kernels/cuda/row_norms.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {

absl::Status RowNorms(DeviceContext& device, std::span<const RowNormsArgs> cohort) {
  Op op(device, "row_norms");
  std::vector<RowsSpec> specs;
  std::vector<ScoreView> norms;
  std::vector<SequenceRows> sequences;
  for (const RowNormsArgs& args : cohort) {
    specs.push_back({args.rows, args.norms.shape[1], args.norms.shape[2]});
    norms.push_back(args.norms);
    sequences.push_back({args.norms.shape[0] * args.norms.shape[1], args.norms.shape[2]});
  }
  RowNormsParams params;
  params.rows = op.AddRows(specs);
  params.norms = op.AddScores(norms, Access::kWrite);
  params.grid = AddScoreGrid(op, sequences, kRowNormsRun);
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchRowNorms(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
