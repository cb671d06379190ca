// Attention that the frontend saw each token receive, fair to those that few queries could see.
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {
namespace {

// How many (query, head) pairs of a kv_head saw each slot: G * (logical_tokens - position).
struct Visible {
  std::vector<double> counts;  // [tokens], or [layers, kv_heads, tokens]
  TensorView<const double, 3> view;
};

absl::StatusOr<Visible> CountVisible(const SequenceInput& sequence) {
  const double group = sequence.model->q_heads / sequence.model->kv_heads;
  Visible visible;
  visible.counts.reserve(sequence.positions.size());
  for (const int32_t position : sequence.positions) {
    if (position >= sequence.logical_tokens) {
      return absl::InvalidArgumentError(absl::StrCat("positions: got ", position, ", want below ",
                                                     sequence.logical_tokens, " (logical_tokens)"));
    }
    visible.counts.push_back(group * static_cast<double>(sequence.logical_tokens - position));
  }
  visible.view = DenseView(static_cast<const double*>(visible.counts.data()), sequence.Layers(),
                           sequence.KvHeads(), sequence.Tokens());
  if (!sequence.per_head_positions) visible.view.stride[0] = visible.view.stride[1] = 0;
  return visible;
}

class AttentionMassScorer final : public Scorer {
 public:
  explicit AttentionMassScorer(const StageParams& params)
      : per_visible_(params.Bool("per_visible")),
        value_norm_(params.Bool("value_norm")),
        log_(params.Bool("log")) {}

  uint16_t Inputs() const override {
    return kNeedsAttentionMass | (value_norm_ ? kNeedsValues : kNeedsNothing);
  }
  absl::Status Score(Backend& backend, std::span<const ScoreInput> cohort) const override {
    std::vector<Visible> visible(cohort.size());
    ScratchVector<AttentionMassArgs> args;
    for (size_t at = 0; at < cohort.size(); ++at) {
      const SequenceInput& sequence = *cohort[at].sequence;
      const ScoreView scores = cohort[at].scores;
      KVERN_CHECK(static_cast<int64_t>(sequence.side->attention_mass.size()) == scores.Size());
      if (per_visible_) {
        KVERN_ASSIGN_OR_RETURN(visible[at], CountVisible(sequence));
      }
      args.push_back({.mass = DenseView(sequence.side->attention_mass.data(), scores.shape[0],
                                        scores.shape[1], scores.shape[2]),
                      .visible = visible[at].view,
                      .values = sequence.values,
                      .per_visible = per_visible_,
                      .value_norm = value_norm_,
                      .log = log_,
                      .scores = scores});
    }
    return backend.AttentionMass(args);
  }

 private:
  const bool per_visible_;
  const bool value_norm_;
  const bool log_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Scorer>> MakeAttentionMassScorer(const StageParams& params) {
  return std::make_unique<AttentionMassScorer>(params);
}

}  // namespace kvern::pipeline
