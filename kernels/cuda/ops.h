// Every op of the backend: from host arguments to enqueued launches. The contract of each is
// Backend's (kernels/backend.h). Per op: X in x.cc here, its kernels and LaunchX in x.cu, the
// parameters of the launch in x.h.
#ifndef KVERN_KERNELS_CUDA_OPS_H_
#define KVERN_KERNELS_CUDA_OPS_H_

#include <span>

#include "absl/status/status.h"
#include "kernels/op_args.h"

namespace kvern::cuda {

class DeviceContext;

absl::Status RowNorms(DeviceContext& device, std::span<const RowNormsArgs> cohort);
absl::Status TriAttention(DeviceContext& device, std::span<const TriAttentionArgs> cohort);
absl::Status ExpectedAttention(DeviceContext& device,
                               std::span<const ExpectedAttentionArgs> cohort);
absl::Status WindowAttention(DeviceContext& device, std::span<const WindowAttentionArgs> cohort);
absl::Status KeyDiff(DeviceContext& device, std::span<const KeyDiffArgs> cohort);
absl::Status AttentionMass(DeviceContext& device, std::span<const AttentionMassArgs> cohort);
absl::Status ZScore(DeviceContext& device, std::span<const ZScoreArgs> cohort);
absl::Status Scale(DeviceContext& device, float factor, std::span<const ScoreView> cohort);
absl::Status Blend(DeviceContext& device, std::span<const BlendArgs> cohort);
absl::Status ShareRows(DeviceContext& device, std::span<const ShareRowsArgs> cohort);
absl::Status HideScores(DeviceContext& device, std::span<const HideScoresArgs> cohort);
absl::Status TopK(DeviceContext& device, std::span<const TopKArgs> cohort);
absl::Status Diverse(DeviceContext& device, std::span<const DiverseArgs> cohort);
absl::Status MeanKey(DeviceContext& device, std::span<const MeanKeyArgs> cohort);
absl::Status Encode(DeviceContext& device, std::span<const EncodeArgs> cohort);
absl::Status Decode(DeviceContext& device, std::span<const DecodeArgs> cohort);
absl::Status Gather(DeviceContext& device, std::span<const GatherArgs> cohort);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_OPS_H_
