// Scores of different kinds only meet as z-scores.
#include "server/pipeline/score_sets.h"

#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"

namespace kvern::pipeline {
namespace {

// A set starts on a cache line of its own, so that devices read it in whole ones.
constexpr int64_t kAlignFloats = 64;

int64_t RoomFor(const SequenceInput& sequence) {
  const int64_t cells = sequence.Layers() * sequence.KvHeads() * sequence.Tokens();
  return (cells + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
}

}  // namespace

absl::StatusOr<ScoreSets> ScoreSets::Make(Backend& backend, std::span<const ScoreInput> cohort,
                                          int64_t scorers) {
  int64_t floats = 0;
  for (const ScoreInput& input : cohort) floats += RoomFor(*input.sequence);
  ScoreSets sets;
  KVERN_ASSIGN_OR_RETURN(sets.memory_,
                         backend.Allocate(scorers * floats * static_cast<int64_t>(sizeof(float))));
  auto* next = reinterpret_cast<float*>(sets.memory_.data());
  for (int64_t scorer = 0; scorer < scorers; ++scorer) {
    for (const ScoreInput& input : cohort) {
      const SequenceInput& sequence = *input.sequence;
      sets.views_.push_back(
          DenseView(next, sequence.Layers(), sequence.KvHeads(), sequence.Tokens()));
      next += RoomFor(sequence);
    }
  }
  return sets;
}

absl::Status ScoreSets::Fill(Backend& backend, const ResolvedPolicy& policy,
                             std::span<const ScoreInput> cohort) {
  ScratchVector<ScoreInput> inputs(cohort.begin(), cohort.end());
  ScratchVector<ZScoreArgs> normalize;  // scorers x sequences
  const size_t scorers = policy.scorers.size();
  const auto view = [&](size_t scorer, size_t at) { return views_[scorer * inputs.size() + at]; };
  for (size_t scorer = 0; scorer < scorers; ++scorer) {
    for (size_t at = 0; at < inputs.size(); ++at) {
      inputs[at].scores = view(scorer, at);
      normalize.push_back({inputs[at].candidates, inputs[at].scores});
    }
    KVERN_RETURN_IF_ERROR(policy.scorers[scorer]->Score(backend, inputs));
  }
  if (scorers == 1) return absl::OkStatus();
  KVERN_RETURN_IF_ERROR(backend.ZScore(normalize));
  for (size_t scorer = 1; scorer < scorers; ++scorer) {
    ScratchVector<BlendArgs> blend;
    for (size_t at = 0; at < inputs.size(); ++at) {
      blend.push_back({policy.blend, view(scorer, at), view(0, at)});
    }
    KVERN_RETURN_IF_ERROR(backend.Blend(blend));
  }
  return absl::OkStatus();
}

}  // namespace kvern::pipeline
