// ExpectedAttention of a cohort in three launches: reference keys, logits and value norms, scores.
// The full form needs the last two.
#include "kernels/cuda/expected_attention.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/centre_keys.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {

absl::Status ExpectedAttention(DeviceContext& device,
                               std::span<const ExpectedAttentionArgs> cohort) {
  if (cohort.empty()) return absl::OkStatus();
  Op op(device, "expected_attention");
  std::vector<RowsSpec> keys, values;
  std::vector<ScoreView> scores;
  std::vector<MaskView> counted;
  std::vector<QueryMoments> moments;
  const ExpectedAttentionArgs& first = cohort[0];
  for (const ExpectedAttentionArgs& args : cohort) {
    keys.push_back({args.keys, args.scores.shape[1], args.scores.shape[2]});
    values.push_back({args.values, args.scores.shape[1], args.scores.shape[2]});
    scores.push_back(args.scores);
    counted.push_back(args.counted);
    moments.push_back({op.UploadDense(args.linear), op.UploadDense(args.factors),
                       args.full ? nullptr : op.UploadDense(args.diagonal)});
  }
  ExpectedAttentionParams params;
  params.rows = op.AddRows(keys);
  if (first.value_norm) params.values = op.AddRows(values);
  params.moments = op.Upload(moments);
  params.counted = op.AddMasks(counted);
  params.q_heads = first.q_heads;
  const int64_t kv_heads = first.scores.shape[1];
  params.group = kv_heads == 0 ? 1 : static_cast<int32_t>(first.q_heads / kv_heads);
  params.rank = first.rank;
  params.full = first.full;
  params.epsilon = double{first.epsilon};
  params.value_norm = first.value_norm;
  params.log = first.log;
  params.logits = op.Scratch<double>(params.rows.tile_count * params.group * kTile);
  params.norms = op.Scratch<float>(params.rows.tile_count * kTile);
  params.totals = op.Scratch<SoftMaxTotal>(params.rows.count * params.group);
  params.scores = op.AddScores(scores, Access::kWrite);
  const int32_t head_dim = params.rows.keys.shape.head_dim;
  CentreKeysParams centre;
  centre.rows = params.rows;
  centre.candidates = params.counted;
  // A constant in a logit changes nothing: no vector wants its product with the reference.
  centre.vectors = op.Upload(std::vector<QueryVectors>(cohort.size()));
  centre.reference = op.Scratch<float>(params.rows.count * head_dim);
  params.reference = centre.reference;
  KVERN_RETURN_IF_ERROR(op.Ready());
  if (!params.full) op.Launched(LaunchCentreKeys(centre, op.stream()));
  op.Launched(LaunchExpectedLogits(params, op.stream()));
  op.Launched(LaunchExpectedAttention(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
