// The vectorised backend: Highway picks the instruction set at run time, a Runner spreads heads
// over threads. Same bits as kernels/ref (ruling 6).
#ifndef KVERN_KERNELS_CPU_CPU_BACKEND_H_
#define KVERN_KERNELS_CPU_CPU_BACKEND_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/runner.h"

namespace kvern::cpu {

class CpuBackend final : public Backend {
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

  absl::Status RowNorms(LayerRefs rows, ScoreView norms) override;
  absl::Status TriAttention(const TriAttentionArgs& args, ScoreView scores) override;
  absl::Status ExpectedAttention(const ExpectedAttentionArgs& args, ScoreView scores) override;
  absl::Status WindowAttention(const WindowAttentionArgs& args, ScoreView scores) override;
  absl::Status KeyDiff(const KeyDiffArgs& args, ScoreView scores) override;
  absl::Status AttentionMass(const AttentionMassArgs& args, ScoreView scores) override;
  absl::Status ZScore(MaskView candidates, ScoreView scores) override;
  absl::Status Scale(float factor, ScoreView scores) override;
  absl::Status Blend(BlendKind kind, ConstScoreView scores, ScoreView accumulated) override;
  absl::Status ShareRows(const std::vector<std::vector<int64_t>>& groups, GroupReduce reduce,
                         ScoreView scores) override;
  absl::Status TopK(const TopKArgs& args, KeepList* keep) override;
  absl::Status Diverse(const DiverseArgs& args, KeepList* keep) override;
  absl::Status MeanKey(const MeanKeyArgs& args, TensorView<Float16, 3> mean) override;
  absl::Status Encode(const EncodeArgs& args, EncodeCounts* counts) override;
  absl::Status Decode(const DecodeArgs& args) override;
  absl::Status Gather(const GatherArgs& args) override;

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
