// AttentionMass of a cohort in one launch.
#include "kernels/cuda/attention_mass.h"

#include <algorithm>
#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/score_views.h"

namespace kvern::cuda {
namespace {

// Rows that layers or heads share travel once.
void AddVisible(Op& op, const TensorView<const double, 3>& view, std::vector<VisibleRow>* rows) {
  TensorView<const double, 3> distinct = view;
  for (int axis = 0; axis < 2; ++axis) {
    if (view.stride[axis] == 0) distinct.shape[axis] = std::min<int64_t>(1, view.shape[axis]);
  }
  const double* device = op.UploadDense(distinct);
  TensorView<const double, 3> dense =
      DenseView(device, distinct.shape[0], distinct.shape[1], distinct.shape[2]);
  for (int axis = 0; axis < 2; ++axis) {
    if (view.stride[axis] == 0) dense.stride[axis] = 0;
  }
  for (int64_t layer = 0; layer < view.shape[0]; ++layer) {
    for (int64_t head = 0; head < view.shape[1]; ++head) {
      rows->push_back({device == nullptr ? nullptr : dense.At(layer, head)});
    }
  }
}

}  // namespace

absl::Status AttentionMass(DeviceContext& device, std::span<const AttentionMassArgs> cohort) {
  if (cohort.empty()) return absl::OkStatus();
  Op op(device, "attention_mass");
  std::vector<RowsSpec> values;
  std::vector<ScoreView> mass;
  std::vector<ScoreView> scores;
  std::vector<VisibleRow> visible;
  AttentionMassParams params;
  params.value_norm = cohort[0].value_norm;
  params.log = cohort[0].log;
  for (const AttentionMassArgs& args : cohort) {
    values.push_back({args.values, args.scores.shape[1], args.scores.shape[2]});
    mass.push_back(ReadOnly(args.mass));
    scores.push_back(args.scores);
    if (args.per_visible) AddVisible(op, args.visible, &visible);
  }
  if (params.value_norm) params.values = op.AddRows(values);
  params.mass = op.AddScores(mass, Access::kRead);
  if (cohort[0].per_visible) params.visible = op.Upload(visible);
  params.scores = op.AddScores(scores, Access::kWrite);
  params.grid = AddScoreGrid(op, RowsOf(scores), kAttentionMassRun);
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchAttentionMass(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
