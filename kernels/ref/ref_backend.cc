// Hands every op to its own file.
#include "kernels/ref/ref_backend.h"

#include "kernels/base/status_macros.h"
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
namespace {

// Sequence after sequence, up to the first that fails.
template <class Args, class Op>
absl::Status ForEach(std::span<const Args> cohort, Op op) {
  for (const Args& args : cohort) KVERN_RETURN_IF_ERROR(op(args));
  return absl::OkStatus();
}

}  // namespace

absl::Status RefBackend::RowNorms(std::span<const RowNormsArgs> cohort) {
  return ForEach(cohort, [&](const RowNormsArgs& args) {
    return ref::RowNorms(stop_, args.rows, args.norms);
  });
}
absl::Status RefBackend::TriAttention(std::span<const TriAttentionArgs> cohort) {
  return ForEach(cohort, [&](const TriAttentionArgs& args) {
    return ref::TriAttention(stop_, args, args.scores);
  });
}
absl::Status RefBackend::ExpectedAttention(std::span<const ExpectedAttentionArgs> cohort) {
  return ForEach(cohort, [&](const ExpectedAttentionArgs& args) {
    return ref::ExpectedAttention(stop_, args, args.scores);
  });
}
absl::Status RefBackend::WindowAttention(std::span<const WindowAttentionArgs> cohort) {
  return ForEach(cohort, [&](const WindowAttentionArgs& args) {
    return ref::WindowAttention(stop_, args, args.scores);
  });
}
absl::Status RefBackend::KeyDiff(std::span<const KeyDiffArgs> cohort) {
  return ForEach(cohort,
                 [&](const KeyDiffArgs& args) { return ref::KeyDiff(stop_, args, args.scores); });
}
absl::Status RefBackend::AttentionMass(std::span<const AttentionMassArgs> cohort) {
  return ForEach(cohort, [&](const AttentionMassArgs& args) {
    return ref::AttentionMass(stop_, args, args.scores);
  });
}
absl::Status RefBackend::ZScore(std::span<const ZScoreArgs> cohort) {
  return ForEach(cohort, [&](const ZScoreArgs& args) {
    return ref::ZScore(stop_, args.candidates, args.scores);
  });
}
absl::Status RefBackend::Scale(float factor, std::span<const ScoreView> cohort) {
  return ForEach(cohort, [&](ScoreView scores) { return ref::Scale(stop_, factor, scores); });
}
absl::Status RefBackend::Blend(std::span<const BlendArgs> cohort) {
  return ForEach(cohort, [&](const BlendArgs& args) {
    return ref::Blend(stop_, args.kind, args.scores, args.accumulated);
  });
}
absl::Status RefBackend::ShareRows(std::span<const ShareRowsArgs> cohort) {
  return ForEach(cohort, [&](const ShareRowsArgs& args) {
    return ref::ShareRows(stop_, *args.groups, args.reduce, args.scores);
  });
}
absl::Status RefBackend::HideScores(std::span<const HideScoresArgs> cohort) {
  return ForEach(cohort, [&](const HideScoresArgs& args) { return ref::HideScores(stop_, args); });
}
absl::Status RefBackend::TopK(std::span<const TopKArgs> cohort) {
  return ForEach(cohort, [&](const TopKArgs& args) { return ref::TopK(stop_, args, args.keep); });
}
absl::Status RefBackend::Diverse(std::span<const DiverseArgs> cohort) {
  return ForEach(cohort,
                 [&](const DiverseArgs& args) { return ref::Diverse(stop_, args, args.keep); });
}
absl::Status RefBackend::MeanKey(std::span<const MeanKeyArgs> cohort) {
  return ForEach(cohort,
                 [&](const MeanKeyArgs& args) { return ref::MeanKey(stop_, args, args.mean); });
}
absl::Status RefBackend::Encode(std::span<const EncodeArgs> cohort) {
  return ForEach(cohort,
                 [&](const EncodeArgs& args) { return ref::Encode(stop_, args, args.counts); });
}
absl::Status RefBackend::Decode(std::span<const DecodeArgs> cohort) {
  return ForEach(cohort, [&](const DecodeArgs& args) { return ref::Decode(stop_, args); });
}
absl::Status RefBackend::Gather(std::span<const GatherArgs> cohort) {
  return ForEach(cohort, [&](const GatherArgs& args) { return ref::Gather(stop_, args); });
}

}  // namespace kvern::ref
