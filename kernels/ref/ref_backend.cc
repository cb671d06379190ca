// Hands every op to its own file.
#include "kernels/ref/ref_backend.h"

#include "kernels/ref/attention_mass.h"
#include "kernels/ref/decode.h"
#include "kernels/ref/diverse.h"
#include "kernels/ref/elementwise.h"
#include "kernels/ref/encode.h"
#include "kernels/ref/expected_attention.h"
#include "kernels/ref/gather.h"
#include "kernels/ref/key_diff.h"
#include "kernels/ref/mean_key.h"
#include "kernels/ref/row_norms.h"
#include "kernels/ref/share_rows.h"
#include "kernels/ref/top_k.h"
#include "kernels/ref/tri_attention.h"
#include "kernels/ref/window_attention.h"
#include "kernels/ref/z_score.h"

namespace kvern::ref {

absl::Status RefBackend::RowNorms(LayerRefs rows, ScoreView norms) {
  return ref::RowNorms(stop_, rows, norms);
}
absl::Status RefBackend::TriAttention(const TriAttentionArgs& args, ScoreView scores) {
  return ref::TriAttention(stop_, args, scores);
}
absl::Status RefBackend::ExpectedAttention(const ExpectedAttentionArgs& args, ScoreView scores) {
  return ref::ExpectedAttention(stop_, args, scores);
}
absl::Status RefBackend::WindowAttention(const WindowAttentionArgs& args, ScoreView scores) {
  return ref::WindowAttention(stop_, args, scores);
}
absl::Status RefBackend::KeyDiff(const KeyDiffArgs& args, ScoreView scores) {
  return ref::KeyDiff(stop_, args, scores);
}
absl::Status RefBackend::AttentionMass(const AttentionMassArgs& args, ScoreView scores) {
  return ref::AttentionMass(stop_, args, scores);
}
absl::Status RefBackend::ZScore(MaskView candidates, ScoreView scores) {
  return ref::ZScore(stop_, candidates, scores);
}
absl::Status RefBackend::Scale(float factor, ScoreView scores) {
  return ref::Scale(stop_, factor, scores);
}
absl::Status RefBackend::Blend(BlendKind kind, ConstScoreView scores, ScoreView accumulated) {
  return ref::Blend(stop_, kind, scores, accumulated);
}
absl::Status RefBackend::ShareRows(const std::vector<std::vector<int64_t>>& groups,
                                   GroupReduce reduce, ScoreView scores) {
  return ref::ShareRows(stop_, groups, reduce, scores);
}
absl::Status RefBackend::TopK(const TopKArgs& args, KeepList* keep) {
  return ref::TopK(stop_, args, keep);
}
absl::Status RefBackend::Diverse(const DiverseArgs& args, KeepList* keep) {
  return ref::Diverse(stop_, args, keep);
}
absl::Status RefBackend::MeanKey(const MeanKeyArgs& args, TensorView<Float16, 3> mean) {
  return ref::MeanKey(stop_, args, mean);
}
absl::Status RefBackend::Encode(const EncodeArgs& args, EncodeCounts* counts) {
  return ref::Encode(stop_, args, counts);
}
absl::Status RefBackend::Decode(const DecodeArgs& args) { return ref::Decode(stop_, args); }
absl::Status RefBackend::Gather(const GatherArgs& args) { return ref::Gather(stop_, args); }

}  // namespace kvern::ref
