// Decides what is kept: counts first, then scores over what may go, then the selector's pick.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/protection.h"
#include "server/pipeline/rotation.h"
#include "server/pipeline/token_masks.h"

namespace kvern::pipeline {
namespace {

class Stopwatch {
 public:
  // Microseconds since the last lap.
  int64_t Lap() {
    const auto now = std::chrono::steady_clock::now();
    const auto lap = std::chrono::duration_cast<std::chrono::microseconds>(now - last_);
    last_ = now;
    return lap.count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

struct NamedInput {
  Inputs bit;
  const char* name;
  bool (*present)(const SequenceInput& input);
};
constexpr NamedInput kInputs[] = {
    {kNeedsCentres, "calibration",
     [](const SequenceInput& input) { return input.calibrations->centres != nullptr; }},
    {kNeedsMoments, "query_moments",
     [](const SequenceInput& input) { return input.calibrations->moments != nullptr; }},
    {kNeedsQueryWindow, "q_window",
     [](const SequenceInput& input) { return !input.side->q_window.empty(); }},
    {kNeedsAttentionMass, "attention_mass",
     [](const SequenceInput& input) { return !input.side->attention_mass.empty(); }},
    {kNeedsExternalScores, "external_scores",
     [](const SequenceInput& input) { return !input.side->external_scores.empty(); }},
    {kNeedsRope, "rope", [](const SequenceInput& input) { return RopeKnown(input); }},
    {kNeedsValues, "values",
     [](const SequenceInput& input) { return input.values.size() == input.keys.size(); }},
};

// Contract rule 10: what a policy needs and did not get is named, never replaced.
absl::Status CheckInputs(const SequenceInput& input, const Scorer& scorer) {
  for (const NamedInput& needed : kInputs) {
    if ((scorer.Inputs() & needed.bit) == 0 || needed.present(input)) continue;
    return WithReason(absl::FailedPreconditionError(absl::StrCat("scorer: got no ", needed.name,
                                                                 ", want it for this policy")),
                      needed.bit == kNeedsRope ? "ROPE_UNKNOWN" : "INPUT_MISSING");
  }
  return absl::OkStatus();
}

ShapeClass ClassOf(const SequenceInput& input, const ResolvedPolicy& policy,
                   const CountPlan& counts) {
  bool layers_differ = false, lengths_differ = false;
  for (int64_t row = 0; row < input.Layers() * input.KvHeads(); ++row) {
    const int64_t layer = row / input.KvHeads(), head = row % input.KvHeads();
    if (counts.counts[row] != counts.counts[layer * input.KvHeads()]) return ShapeClass::kS4;
    layers_differ |= counts.counts[row] != counts.counts[0];
    lengths_differ |= RowLength(input, layer, head) != input.Tokens();
  }
  if (layers_differ) return ShapeClass::kS3;
  if (counts.EverythingStays(input)) return ShapeClass::kS0;
  const ShapeClass equal = policy.selector->EqualCountsClass();
  // The last tokens of rows that hold different tokens are different tokens.
  return lengths_differ ? std::max(equal, ShapeClass::kS2) : equal;
}

class KeepPlanner {
 public:
  KeepPlanner(Backend& backend, const SequenceInput& input, const ResolvedPolicy& policy)
      : backend_(backend), input_(input), policy_(policy) {}

  absl::StatusOr<KeepPlan> Plan() {
    Stopwatch watch;
    KVERN_ASSIGN_OR_RETURN(plan_.counts, PlanCounts(input_, policy_));
    plan_.shape_class = ClassOf(input_, policy_, plan_.counts);
    KVERN_RETURN_IF_ERROR(CheckRenumber());
    plan_.keep =
        KeepList::WithCounts(DenseView(static_cast<const int32_t*>(plan_.counts.counts.data()),
                                       input_.Layers(), input_.KvHeads()));
    if (plan_.counts.EverythingStays(input_)) {
      KeepEverything();
    } else {
      masks_ = MasksOf(input_, policy_, plan_.counts);
      KVERN_RETURN_IF_ERROR(CheckForcedFits());
      plan_.micros.plan = watch.Lap();
      KVERN_RETURN_IF_ERROR(Score());
      plan_.micros.score = watch.Lap();
      KVERN_RETURN_IF_ERROR(Select());
      plan_.micros.select = watch.Lap();
    }
    FillPositions();
    plan_.micros.plan += watch.Lap();
    return std::move(plan_);
  }

 private:
  int64_t Rows() const { return input_.Layers() * input_.KvHeads(); }
  ScoreView ViewOf(std::vector<float>& scores) const {
    return DenseView(scores.data(), input_.Layers(), input_.KvHeads(), input_.Tokens());
  }

  absl::Status CheckRenumber() const {
    if (policy_.positions != PositionMode::kRenumber) return absl::OkStatus();
    if (plan_.shape_class >= ShapeClass::kS3) {
      return WithReason(
          absl::FailedPreconditionError(absl::StrCat(
              "positions: got RENUMBER with shape class S", static_cast<int>(plan_.shape_class),
              ", want equal counts in all layers and heads (S0 to S2)")),
          "SHAPE_CLASS");
    }
    if (!RopeKnown(input_)) {
      return WithReason(absl::FailedPreconditionError(
                            "positions: got RENUMBER without rope, want inverse frequencies"),
                        "ROPE_UNKNOWN");
    }
    return CheckReadOnlyPositions();
  }

  // Keys that may not be written cannot be turned to another position.
  absl::Status CheckReadOnlyPositions() const {
    for (int64_t row = 0; row < Rows(); ++row) {
      const int64_t layer = row / input_.KvHeads(), head = row % input_.KvHeads();
      const int64_t length = RowLength(input_, layer, head);
      for (int64_t slot = 0; slot < std::min(input_.readonly_prefix_tokens, length); ++slot) {
        if (input_.Position(layer, head, slot) == slot) continue;
        return WithReason(
            absl::FailedPreconditionError(absl::StrCat(
                "positions: got RENUMBER with position ", input_.Position(layer, head, slot),
                " in read-only slot ", slot, ", want it equal to its slot")),
            "READONLY_POSITIONS");
      }
    }
    return absl::OkStatus();
  }

  // The identity: no score is asked for, nothing is judged.
  void KeepEverything() {
    for (int64_t row = 0; row < Rows(); ++row) {
      int32_t* tokens = plan_.keep.tokens.data() + plan_.keep.offsets[row];
      std::iota(tokens, tokens + plan_.counts.counts[row], 0);
    }
  }

  absl::Status CheckForcedFits() const {
    // A shared mask row stands for rows of equal counts.
    for (int64_t row = 0; row < masks_.forced.StoredRows(); ++row) {
      const uint8_t* forced = masks_.forced.Row(row);
      const uint8_t* candidates = masks_.candidates.Row(row);
      const int64_t least = std::count(forced, forced + input_.Tokens(), 1);
      const int64_t most = least + std::count(candidates, candidates + input_.Tokens(), 1);
      const int64_t count = plan_.counts.counts[row];
      if (least <= count && count <= most) continue;
      return absl::InternalError(absl::StrCat("plan: got a count of ", count, " in row ", row,
                                              " (layer * kv_heads + head), want ", least, " to ",
                                              most));
    }
    return absl::OkStatus();
  }

  absl::Status Score() {
    if (policy_.scorers.empty()) {
      if (!policy_.selector->NeedsScores()) return absl::OkStatus();
      return absl::InvalidArgumentError("policy.scorers: got none, want one to evict tokens");
    }
    std::optional<RotationTable> rotation;
    for (const auto& scorer : policy_.scorers) {
      KVERN_RETURN_IF_ERROR(CheckInputs(input_, *scorer));
      if ((scorer->Inputs() & kNeedsRope) != 0 && !rotation) rotation = BuildRotation(input_);
    }
    const ScoreInput score_input{.sequence = &input_,
                                 .alive = masks_.alive.View(),
                                 .candidates = masks_.candidates.View(),
                                 .sink_tokens = policy_.sink_tokens,
                                 .rotation = rotation ? &*rotation : nullptr};
    plan_.scores.resize(Rows() * input_.Tokens());
    KVERN_RETURN_IF_ERROR(ScoreAll(score_input));
    HideProtected();
    return absl::OkStatus();
  }

  // Scores of different kinds only meet as z-scores.
  absl::Status ScoreAll(const ScoreInput& score_input) {
    const ScoreView scores = ViewOf(plan_.scores);
    KVERN_RETURN_IF_ERROR(policy_.scorers[0]->Score(backend_, score_input, scores));
    if (policy_.scorers.size() == 1) return absl::OkStatus();
    KVERN_RETURN_IF_ERROR(backend_.ZScore(score_input.candidates, scores));
    std::vector<float> other(plan_.scores.size());
    for (size_t i = 1; i < policy_.scorers.size(); ++i) {
      KVERN_RETURN_IF_ERROR(policy_.scorers[i]->Score(backend_, score_input, ViewOf(other)));
      KVERN_RETURN_IF_ERROR(backend_.ZScore(score_input.candidates, ViewOf(other)));
      KVERN_RETURN_IF_ERROR(backend_.Blend(policy_.blend, ViewOf(other), scores));
    }
    return absl::OkStatus();
  }

  // Only candidates have scores (ruling 8); those of them that came out NaN are counted.
  void HideProtected() {
    const MaskView candidates = masks_.candidates.View();
    for (int64_t row = 0; row < Rows(); ++row) {
      float* scores = plan_.scores.data() + row * input_.Tokens();
      const uint8_t* is_candidate = candidates.At(row / input_.KvHeads(), row % input_.KvHeads());
      for (int64_t token = 0; token < input_.Tokens(); ++token) {
        if (is_candidate[token] == 0) {
          scores[token] = std::numeric_limits<float>::quiet_NaN();
        } else if (std::isnan(scores[token])) {
          ++plan_.nan_scores;
        }
      }
    }
  }

  absl::Status Select() {
    return policy_.selector->Select(backend_,
                                    {.sequence = &input_,
                                     .candidates = masks_.candidates.View(),
                                     .forced = masks_.forced.View(),
                                     .scores = ViewOf(plan_.scores)},
                                    &plan_.keep);
  }

  // Where the kept keys will be rotated to: their old positions, or 0..n-1.
  void FillPositions() {
    for (const int32_t count : plan_.counts.counts) {
      plan_.max_kept = std::max<int64_t>(plan_.max_kept, count);
    }
    plan_.kept_positions.assign(Rows() * plan_.max_kept, -1);
    const bool renumber = policy_.positions == PositionMode::kRenumber;
    for (int64_t row = 0; row < Rows(); ++row) {
      const int64_t layer = row / input_.KvHeads(), head = row % input_.KvHeads();
      const int32_t* kept = plan_.keep.Row(layer, head);
      for (int32_t slot = 0; slot < plan_.counts.counts[row]; ++slot) {
        plan_.kept_positions[row * plan_.max_kept + slot] =
            renumber ? slot : input_.Position(layer, head, kept[slot]);
      }
    }
  }

  Backend& backend_;
  const SequenceInput& input_;
  const ResolvedPolicy& policy_;
  TokenMasks masks_;
  KeepPlan plan_;
};

}  // namespace

absl::StatusOr<KeepPlan> PlanKeep(Backend& backend, const SequenceInput& input,
                                  const ResolvedPolicy& policy) {
  return KeepPlanner(backend, input, policy).Plan();
}

}  // namespace kvern::pipeline
