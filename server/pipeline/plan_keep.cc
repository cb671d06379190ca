// Decides what is kept: counts first, then scores over what may go, then the selector's pick. A
// stage is one op for the whole cohort, so launches do not grow with layers, heads or sequences.
#include <utility>

#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/keep_draft.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/rotation.h"
#include "server/pipeline/score_sets.h"

namespace kvern::pipeline {
namespace {

// Sequences that choose; they run the stages of the first one's policy, which are those of all.
class Choosers {
 public:
  Choosers(Backend& backend, ScratchVector<KeepDraft*> drafts)
      : backend_(backend), drafts_(std::move(drafts)) {}

  absl::Status Run() {
    if (drafts_.empty()) return absl::OkStatus();
    KVERN_RETURN_IF_ERROR(backend_.Lap().status());  // what came before is not theirs
    if (!Policy().scorers.empty()) KVERN_RETURN_IF_ERROR(Score());
    KVERN_RETURN_IF_ERROR(Share(&StageMicros::score));
    KVERN_RETURN_IF_ERROR(Select());
    KVERN_RETURN_IF_ERROR(Share(&StageMicros::select));
    return BringScores();
  }

 private:
  const ResolvedPolicy& Policy() const { return drafts_[0]->policy(); }

  absl::Status Score() {
    ScratchVector<ScoreInput> inputs;
    RotationTables rotations;
    bool needs_rope = false;
    for (const auto& scorer : Policy().scorers) needs_rope |= (scorer->Inputs() & kNeedsRope) != 0;
    for (KeepDraft* draft : drafts_) {
      if (needs_rope) draft->plan().rotation = rotations.Of(draft->input());
      inputs.push_back({.sequence = &draft->input(),
                        .alive = draft->masks().alive.View(),
                        .candidates = draft->masks().candidates.View(),
                        .sink_tokens = draft->policy().sink_tokens,
                        .rotation = draft->plan().rotation.get()});
    }
    KVERN_ASSIGN_OR_RETURN(
        scores_, ScoreSets::Make(backend_, inputs, static_cast<int64_t>(Policy().scorers.size())));
    KVERN_RETURN_IF_ERROR(scores_.Fill(backend_, Policy(), inputs));
    return HideProtected(inputs);
  }

  // Only candidates have scores (ruling 8); those of them that came out NaN are counted.
  absl::Status HideProtected(std::span<const ScoreInput> inputs) {
    ScratchVector<HideScoresArgs> args;
    for (size_t at = 0; at < drafts_.size(); ++at) {
      args.push_back({.candidates = inputs[at].candidates,
                      .scores = scores_.Of(at),
                      .nan_candidates = &drafts_[at]->plan().nan_scores});
    }
    return backend_.HideScores(args);
  }

  absl::Status Select() {
    ScratchVector<SelectInput> inputs;
    for (size_t at = 0; at < drafts_.size(); ++at) {
      KeepDraft& draft = *drafts_[at];
      inputs.push_back({.sequence = &draft.input(),
                        .candidates = draft.masks().candidates.View(),
                        .forced = draft.masks().forced.View(),
                        .scores = scores_.Of(at),
                        .keep = &draft.plan().keep});
    }
    return Policy().selector->Select(backend_, inputs);
  }

  absl::Status BringScores() {
    for (size_t at = 0; at < drafts_.size() && !Policy().scorers.empty(); ++at) {
      KeepDraft& draft = *drafts_[at];
      if (!draft.task().want_scores) continue;
      std::vector<float>& scores = draft.plan().scores;
      scores.resize(draft.Cells());
      KVERN_RETURN_IF_ERROR(
          backend_.CopyOut(reinterpret_cast<const std::byte*>(scores_.Of(at).data),
                           std::as_writable_bytes(std::span(scores))));
    }
    return absl::OkStatus();
  }

  // The time of a stage belongs to the whole cohort: each sequence gets the part of its tokens.
  absl::Status Share(int64_t StageMicros::*stage) {
    KVERN_ASSIGN_OR_RETURN(const int64_t micros, backend_.Lap());
    int64_t tokens = 0;
    for (const KeepDraft* draft : drafts_) tokens += draft->input().Tokens();
    for (KeepDraft* draft : drafts_) {
      draft->plan().micros.*stage = micros * draft->input().Tokens() / tokens;
    }
    return absl::OkStatus();
  }

  Backend& backend_;
  const ScratchVector<KeepDraft*> drafts_;
  ScoreSets scores_;
};

}  // namespace

absl::StatusOr<ScratchVector<KeepOutcome>> PlanKeep(Backend& backend,
                                                    std::span<const KeepTask> cohort) {
  ScratchVector<KeepDraft> drafts(cohort.begin(), cohort.end());
  ScratchVector<absl::Status> begun;
  ScratchVector<KeepDraft*> choosing;
  for (KeepDraft& draft : drafts) {
    begun.push_back(draft.Begin());
    if (begun.back().ok() && draft.Chooses()) choosing.push_back(&draft);
  }
  KVERN_RETURN_IF_ERROR(Choosers(backend, std::move(choosing)).Run());
  ScratchVector<KeepOutcome> outcomes;
  for (size_t at = 0; at < drafts.size(); ++at) {
    if (begun[at].ok()) {
      outcomes.emplace_back(drafts[at].Finish());
    } else {
      outcomes.emplace_back(std::move(begun[at]));
    }
  }
  return outcomes;
}

absl::StatusOr<KeepPlan> PlanKeep(Backend& backend, const SequenceInput& input,
                                  const ResolvedPolicy& policy) {
  const KeepTask task = {.input = &input, .policy = &policy, .want_scores = true};
  KVERN_ASSIGN_OR_RETURN(ScratchVector<KeepOutcome> outcomes,
                         PlanKeep(backend, std::span(&task, 1)));
  return std::move(outcomes[0]);
}

}  // namespace kvern::pipeline
