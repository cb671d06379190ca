// The executable specification: scalar, single-threaded, in the order that ruling 6 fixes.
#ifndef KVERN_KERNELS_REF_REF_BACKEND_H_
#define KVERN_KERNELS_REF_REF_BACKEND_H_

#include <vector>

#include "kernels/host_backend.h"

namespace kvern::ref {

class RefBackend final : public HostBackend {
 public:
  absl::string_view Name() const override { return "ref"; }
  absl::string_view InstructionSet() const override { return "scalar"; }
  void Bind(const StopCheck* stop) override { stop_ = stop; }

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

 private:
  const StopCheck* stop_ = nullptr;
};

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_REF_BACKEND_H_
