// KeyDiff of a cohort in three launches: sums over tiles, mean directions, cosines.
#include "kernels/cuda/key_diff.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/key_sums.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {

absl::Status KeyDiff(DeviceContext& device, std::span<const KeyDiffArgs> cohort) {
  Op op(device, "key_diff");
  std::vector<RowsSpec> specs;
  std::vector<ScoreView> scores;
  std::vector<MaskView> alive;
  std::vector<const RotationTable*> rotations;
  for (const KeyDiffArgs& args : cohort) {
    specs.push_back({args.keys, args.scores.shape[1], args.scores.shape[2]});
    scores.push_back(args.scores);
    alive.push_back(args.alive);
    rotations.push_back(args.unrotate);
  }
  KeySumsParams sums;
  sums.rows = op.AddRows(specs);
  sums.rotations = op.AddRotations(rotations);
  sums.counted = op.AddMasks(alive);
  sums.weight = KeyWeight::kInverseNorm;
  const int32_t head_dim = sums.rows.keys.shape.head_dim;
  sums.sums = op.Scratch<double>(sums.rows.tile_count * head_dim);
  sums.counts = op.Scratch<int32_t>(sums.rows.tile_count);
  sums.norms = op.Scratch<double>(sums.rows.tile_count * kTile);
  KeyDiffParams params;
  params.rows = sums.rows;
  params.rotations = sums.rotations;
  params.sums = sums.sums;
  params.counts = sums.counts;
  params.norms = sums.norms;
  params.anchors = op.Scratch<double>(params.rows.count * head_dim);
  params.anchor_norms = op.Scratch<double>(params.rows.count);
  params.scores = op.AddScores(scores, Access::kWrite);
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchKeySums(sums, op.stream()));
  op.Launched(LaunchAnchors(params, op.stream()));
  op.Launched(LaunchKeyDiff(params, op.stream()));
  return op.End();
}

}  // namespace kvern::cuda
