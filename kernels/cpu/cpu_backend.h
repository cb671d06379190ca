// The vectorised backend: Highway picks the instruction set at run time, a Runner spreads heads
// over threads. Same bits as kernels/ref (ruling 6).
#ifndef KVERN_KERNELS_CPU_CPU_BACKEND_H_
#define KVERN_KERNELS_CPU_CPU_BACKEND_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/runner.h"
#include "kernels/host_backend.h"

namespace kvern::cpu {

class CpuBackend final : public HostBackend {
 public:
  // `instruction_set`: "auto" or one of InstructionSets(). The choice is process-wide: the backend
  // made last decides for all, so only tests ask for anything but "auto". `threads`: 0 is one per
  // core. Errors: InvalidArgument for an unknown name; FailedPrecondition when this machine lacks
  // it.
  static absl::StatusOr<std::unique_ptr<CpuBackend>> Make(const std::string& instruction_set,
                                                          int threads);

  absl::string_view Name() const override { return "cpu"; }
  absl::string_view InstructionSet() const override { return instruction_set_; }
  void Bind(const StopCheck* stop) override { runner_.Bind(stop); }

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
  CpuBackend(std::string instruction_set, int threads)
      : instruction_set_(std::move(instruction_set)), runner_(threads) {}

  std::string instruction_set_;
  Runner runner_;
};

// Those this machine runs and this build contains, best last.
std::vector<std::string> InstructionSets();

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_CPU_BACKEND_H_
