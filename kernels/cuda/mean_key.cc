// MeanKey of a cohort in two launches: sums over tiles, then means, which come back to the host.
#include "kernels/cuda/mean_key.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/key_sums.h"
#include "kernels/cuda/op.h"
#include "kernels/cuda/ops.h"

namespace kvern::cuda {

absl::Status MeanKey(DeviceContext& device, std::span<const MeanKeyArgs> cohort) {
  Op op(device, "mean_key");
  std::vector<RowsSpec> specs;
  std::vector<MaskView> counted;
  std::vector<const RotationTable*> rotations;
  for (const MeanKeyArgs& args : cohort) {
    specs.push_back({args.keys, args.mean.shape[1], args.counted.shape[2]});
    counted.push_back(args.counted);
    rotations.push_back(args.rotation);
  }
  KeySumsParams sums;
  sums.rows = op.AddRows(specs);
  sums.rotations = op.AddRotations(rotations);
  sums.counted = op.AddMasks(counted);
  sums.weight = KeyWeight::kOne;
  const int32_t head_dim = sums.rows.keys.shape.head_dim;
  sums.sums = op.Scratch<double>(sums.rows.tile_count * head_dim);
  sums.counts = op.Scratch<int32_t>(sums.rows.tile_count);
  std::vector<Float16> means(sums.rows.count * head_dim);
  const MeanKeyParams params = {sums.rows, sums.sums, sums.counts,
                                op.Result(std::span<Float16>(means))};
  KVERN_RETURN_IF_ERROR(op.Ready());
  op.Launched(LaunchKeySums(sums, op.stream()));
  op.Launched(LaunchMeanKey(params, op.stream()));
  KVERN_RETURN_IF_ERROR(op.End());
  const Float16* next = means.data();
  for (const MeanKeyArgs& args : cohort) {
    for (int64_t layer = 0; layer < args.mean.shape[0]; ++layer) {
      for (int64_t head = 0; head < args.mean.shape[1]; ++head) {
        for (int64_t d = 0; d < args.mean.shape[2]; ++d) args.mean(layer, head, d) = *next++;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern::cuda
