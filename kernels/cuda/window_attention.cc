// WindowAttention of a cohort in seven launches: reference keys, three passes over keys, what lies
// between them, and the pool.
#include "kernels/cuda/window_attention.h"

#include <cmath>
#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/centre_keys.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {

absl::Status WindowAttention(DeviceContext& device, std::span<const WindowAttentionArgs> cohort) {
  if (cohort.empty()) return absl::OkStatus();
  Op op(device, "window_attention");
  std::vector<RowsSpec> specs;
  std::vector<ScoreView> scores;
  std::vector<const float*> queries;
  std::vector<QueryVectors> vectors;
  const WindowAttentionArgs& first = cohort[0];
  for (const WindowAttentionArgs& args : cohort) {
    specs.push_back({args.keys, args.scores.shape[1], args.scores.shape[2]});
    scores.push_back(args.scores);
    queries.push_back(op.UploadDense(args.queries));
    vectors.push_back({queries.back(), static_cast<int32_t>(args.queries.shape[2])});
  }
  WindowAttentionParams params;
  params.rows = op.AddRows(specs);
  params.queries = op.Upload(queries);
  params.q_heads = static_cast<int32_t>(first.queries.shape[1]);
  const int64_t kv_heads = first.scores.shape[1];
  params.group = kv_heads == 0 ? 1 : static_cast<int32_t>(params.q_heads / kv_heads);
  params.window = static_cast<int32_t>(first.queries.shape[2]);
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  params.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  params.average = first.pool == PoolKind::kAverage;
  params.pool_width = first.pool_width;
  params.mean_of_group = first.group == GroupReduce::kMean;
  const int64_t rows = params.rows.count;
  const int64_t of_row = int64_t{params.group} * params.window;
  float* reference = op.Scratch<float>(rows * head_dim);
  double* constants = op.Scratch<double>(rows * of_row);
  params.reference = reference;
  params.constants = constants;
  params.tiles = op.Scratch<double>(params.rows.tile_count * of_row);
  params.largest = op.Scratch<double>(rows * of_row);
  params.sums = op.Scratch<double>(rows * of_row);
  params.shares = op.Scratch<double>(params.rows.tile_count * params.group * kTile);
  params.scores = op.AddScores(scores, Access::kWrite);
  CentreKeysParams centre;
  centre.rows = params.rows;
  centre.vectors = op.Upload(vectors);
  centre.q_heads = params.q_heads;
  centre.group = params.group;
  centre.max_per_head = params.window;
  centre.dims = head_dim;
  centre.reference = reference;
  centre.constants = constants;
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchCentreKeys(centre, op.stream()));
  op.Launched(LaunchWindowMaxima(params, op.stream()));
  op.Launched(LaunchWindowLargest(params, op.stream()));
  op.Launched(LaunchWindowSums(params, op.stream()));
  op.Launched(LaunchWindowTotals(params, op.stream()));
  op.Launched(LaunchWindowShares(params, op.stream()));
  op.Launched(LaunchWindowAttention(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
