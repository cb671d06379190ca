// TriAttention of a cohort in three launches: reference keys, raw scores, scores.
#include "kernels/cuda/tri_attention.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/centre_keys.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {

absl::Status TriAttention(DeviceContext& device, std::span<const TriAttentionArgs> cohort) {
  if (cohort.empty()) return absl::OkStatus();
  Op op(device, "tri_attention");
  std::vector<RowsSpec> specs;
  std::vector<ScoreView> scores;
  std::vector<MaskView> candidates;
  std::vector<TriAttentionQueries> queries;
  std::vector<QueryVectors> vectors;
  const TriAttentionArgs& first = cohort[0];
  for (const TriAttentionArgs& args : cohort) {
    specs.push_back({args.keys, args.scores.shape[1], args.scores.shape[2]});
    scores.push_back(args.scores);
    candidates.push_back(args.candidates);
    queries.push_back({op.UploadDense(args.u), op.UploadDense(args.w)});
    vectors.push_back({queries.back().u, args.columns});
  }
  TriAttentionParams params;
  params.rows = op.AddRows(specs);
  params.queries = op.Upload(queries);
  params.candidates = op.AddMasks(candidates);
  params.layout = first.layout;
  params.bands = first.bands;
  params.q_heads = first.q_heads;
  const int64_t kv_heads = first.scores.shape[1];
  params.group = kv_heads == 0 ? 1 : static_cast<int32_t>(first.q_heads / kv_heads);
  params.columns = first.columns;
  params.zscore = first.zscore;
  params.mean_of_group = first.group == GroupReduce::kMean;
  const int64_t rows = params.rows.count;
  float* reference = op.Scratch<float>(rows * params.rows.keys.shape.head_dim);
  double* constants = op.Scratch<double>(rows * params.group * params.columns);
  params.reference = reference;
  params.constants = constants;
  params.raw = op.Scratch<double>(params.rows.tile_count * params.group * kTile);
  params.tile_spreads = op.Scratch<TileSpread>(params.rows.tile_count * params.group);
  params.spreads = op.Scratch<RawSpread>(rows * params.group);
  params.scores = op.AddScores(scores, Access::kWrite);
  CentreKeysParams centre;
  centre.rows = params.rows;
  centre.candidates = params.candidates;
  centre.vectors = op.Upload(vectors);
  centre.q_heads = params.q_heads;
  centre.group = params.group;
  centre.max_per_head = params.columns;
  centre.dims = 2 * params.bands;
  centre.reference = reference;
  centre.constants = constants;
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchCentreKeys(centre, op.stream()));
  op.Launched(LaunchRawScores(params, op.stream()));
  op.Launched(LaunchTriAttention(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
