// The backend of a GPU: one launch set for all sequences, layers and heads of a cohort, scratch
// reserved at start, one stream. Same bits as kernels/ref (ruling 6).
#ifndef KVERN_KERNELS_CUDA_CUDA_BACKEND_H_
#define KVERN_KERNELS_CUDA_CUDA_BACKEND_H_

#include <memory>
#include <optional>

#include "kernels/backend.h"
#include "kernels/cuda/device_context.h"

namespace kvern::cuda {

class CudaBackend final : public Backend {
 public:
  // Errors: of DeviceContext::Open.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Make(const DeviceOptions& options);

  absl::string_view Name() const override { return "cuda"; }
  absl::string_view InstructionSet() const override { return device_->instruction_set(); }
  void Bind(const StopCheck* stop) override { device_->Bind(stop); }

  absl::Status RowNorms(std::span<const RowNormsArgs> cohort) override;
  absl::Status TriAttention(std::span<const TriAttentionArgs> cohort) override;
  absl::Status ExpectedAttention(std::span<const ExpectedAttentionArgs> cohort) override;
  absl::Status WindowAttention(std::span<const WindowAttentionArgs> cohort) override;
  absl::Status KeyDiff(std::span<const KeyDiffArgs> cohort) override;
  absl::Status AttentionMass(std::span<const AttentionMassArgs> cohort) override;
  absl::Status ZScore(std::span<const ZScoreArgs> cohort) override;
  absl::Status Scale(float factor, std::span<const ScoreView> cohort) override;
  absl::Status Blend(std::span<const BlendArgs> cohort) override;
  absl::Status ShareRows(std::span<const ShareRowsArgs> cohort) override;
  absl::Status HideScores(std::span<const HideScoresArgs> cohort) override;
  absl::Status TopK(std::span<const TopKArgs> cohort) override;
  absl::Status Diverse(std::span<const DiverseArgs> cohort) override;
  absl::Status MeanKey(std::span<const MeanKeyArgs> cohort) override;
  absl::Status Encode(std::span<const EncodeArgs> cohort) override;
  absl::Status Decode(std::span<const DecodeArgs> cohort) override;
  absl::Status Gather(std::span<const GatherArgs> cohort) override;

  bool Batches() const override { return true; }
  absl::Status Finish() override;
  absl::StatusOr<int64_t> Lap() override;

  absl::StatusOr<Buffer> Allocate(int64_t bytes) override;
  absl::Status CopyIn(std::span<const std::byte> host, std::byte* device) override;
  absl::Status CopyOut(const std::byte* device, std::span<std::byte> host) override;
  absl::Status Zero(std::byte* device, int64_t bytes) override;
  absl::StatusOr<StagedRows> Stage(LayerRefs rows) override;
  absl::StatusOr<std::unique_ptr<DeviceMapping>> Import(const DeviceHandle& handle) override;

  absl::Status Health() const override { return device_->Health(); }
  std::optional<DeviceFacts> Device() const override { return device_->Facts(); }

 private:
  explicit CudaBackend(std::shared_ptr<DeviceContext> device) : device_(std::move(device)) {}

  const std::shared_ptr<DeviceContext> device_;  // mappings outlive the backend
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_CUDA_BACKEND_H_
