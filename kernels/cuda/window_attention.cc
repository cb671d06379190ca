// WindowAttention of a cohort in five launches: reference keys, two passes over keys, what lies
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
  const WindowAttentionArgs& first = cohort[0];
  for (const WindowAttentionArgs& args : cohort) {
    specs.push_back({args.keys, args.scores.shape[1], args.scores.shape[2]});
    scores.push_back(args.scores);
    queries.push_back(op.UploadDense(args.queries));
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
  const int64_t of_tiles = params.rows.tile_count * params.group * params.window;
  float* reference = op.Scratch<float>(params.rows.count * head_dim);
  params.reference = reference;
  params.largest = op.Scratch<float>(of_tiles);
  params.sums = op.Scratch<double>(of_tiles);
  params.shares = op.Scratch<double>(params.rows.tile_count * params.group * kTile);
  params.scores = op.AddScores(scores, Access::kWrite);
  CentreKeysParams centre;
  centre.rows = params.rows;
  // No constant is needed: no vector wants its product with the reference.
  centre.vectors = op.Upload(std::vector<QueryVectors>(cohort.size()));
  centre.reference = reference;
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchCentreKeys(centre, op.stream()));
  op.Launched(LaunchWindowSums(params, op.stream()));
  op.Launched(LaunchWindowWeights(params, op.stream()));
  op.Launched(LaunchWindowShares(params, op.stream()));
  op.Launched(LaunchWindowAttention(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
