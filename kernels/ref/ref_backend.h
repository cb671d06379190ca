// The executable specification: scalar, single-threaded, in the order that ruling 6 fixes.
#ifndef KVERN_KERNELS_REF_REF_BACKEND_H_
#define KVERN_KERNELS_REF_REF_BACKEND_H_

#include <vector>

#include "kernels/backend.h"

namespace kvern::ref {

class RefBackend final : public Backend {
 public:
  absl::string_view Name() const override { return "ref"; }
  absl::string_view InstructionSet() const override { return "scalar"; }
  void Bind(const StopCheck* stop) override { stop_ = stop; }

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
  const StopCheck* stop_ = nullptr;
};

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_REF_BACKEND_H_
