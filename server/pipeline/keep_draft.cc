// What one sequence needs is checked before any op runs, so that it fails alone.
#include "server/pipeline/keep_draft.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/protection.h"
#include "server/pipeline/rotation.h"

namespace kvern::pipeline {
namespace {

// Adds the microseconds of its scope.
class Stopwatch {
 public:
  explicit Stopwatch(int64_t* micros) : micros_(*micros) {}
  ~Stopwatch() {
    const auto lap = std::chrono::steady_clock::now() - start_;
    micros_ += std::chrono::duration_cast<std::chrono::microseconds>(lap).count();
  }

 private:
  int64_t& micros_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
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

}  // namespace

absl::Status KeepDraft::Begin() {
  const Stopwatch watch(&plan_.micros.plan);
  return Prepare();
}

absl::Status KeepDraft::Prepare() {
  if (task_.counts != nullptr) {
    plan_.counts = *task_.counts;
  } else {
    KVERN_ASSIGN_OR_RETURN(plan_.counts, PlanCounts(input(), policy()));
  }
  plan_.shape_class = ClassOf(input(), policy(), plan_.counts);
  KVERN_RETURN_IF_ERROR(CheckRenumber());
  plan_.keep =
      KeepList::WithCounts(DenseView(static_cast<const int32_t*>(plan_.counts.counts.data()),
                                     input().Layers(), input().KvHeads()));
  if (plan_.counts.EverythingStays(input())) {
    KeepEverything();
    return absl::OkStatus();
  }
  chooses_ = true;
  masks_ = MasksOf(input(), policy(), plan_.counts);
  KVERN_RETURN_IF_ERROR(CheckForcedFits());
  return CheckScorers();
}

KeepPlan KeepDraft::Finish() {
  {
    const Stopwatch watch(&plan_.micros.plan);
    FillPositions();
  }
  return std::move(plan_);
}

absl::Status KeepDraft::CheckRenumber() const {
  if (policy().positions != PositionMode::kRenumber) return absl::OkStatus();
  if (plan_.shape_class >= ShapeClass::kS3) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            "positions: got RENUMBER with shape class S", static_cast<int>(plan_.shape_class),
            ", want equal counts in all layers and heads (S0 to S2)")),
        "SHAPE_CLASS");
  }
  if (!RopeKnown(input())) {
    return WithReason(absl::FailedPreconditionError(
                          "positions: got RENUMBER without rope, want inverse frequencies"),
                      "ROPE_UNKNOWN");
  }
  return CheckReadOnlyPositions();
}

// Keys that may not be written cannot be turned to another position.
absl::Status KeepDraft::CheckReadOnlyPositions() const {
  for (int64_t row = 0; row < Rows(); ++row) {
    const int64_t layer = row / input().KvHeads(), head = row % input().KvHeads();
    const int64_t length = RowLength(input(), layer, head);
    for (int64_t slot = 0; slot < std::min(input().readonly_prefix_tokens, length); ++slot) {
      if (input().Position(layer, head, slot) == slot) continue;
      return WithReason(
          absl::FailedPreconditionError(absl::StrCat(
              "positions: got RENUMBER with position ", input().Position(layer, head, slot),
              " in read-only slot ", slot, ", want it equal to its slot")),
          "READONLY_POSITIONS");
    }
  }
  return absl::OkStatus();
}

absl::Status KeepDraft::CheckForcedFits() const {
  // A shared mask row stands for rows of equal counts.
  for (int64_t row = 0; row < masks_.forced.StoredRows(); ++row) {
    const uint8_t* forced = masks_.forced.Row(row);
    const uint8_t* candidates = masks_.candidates.Row(row);
    const int64_t least = std::count(forced, forced + input().Tokens(), 1);
    const int64_t most = least + std::count(candidates, candidates + input().Tokens(), 1);
    const int64_t count = plan_.counts.counts[row];
    if (least <= count && count <= most) continue;
    return absl::InternalError(absl::StrCat("plan: got a count of ", count, " in row ", row,
                                            " (layer * kv_heads + head), want ", least, " to ",
                                            most));
  }
  return absl::OkStatus();
}

absl::Status KeepDraft::CheckScorers() const {
  if (policy().scorers.empty() && policy().selector->NeedsScores()) {
    return absl::InvalidArgumentError("policy.scorers: got none, want one to evict tokens");
  }
  for (const auto& scorer : policy().scorers) KVERN_RETURN_IF_ERROR(CheckInputs(input(), *scorer));
  return absl::OkStatus();
}

// The identity: no score is asked for, nothing is judged.
void KeepDraft::KeepEverything() {
  for (int64_t row = 0; row < Rows(); ++row) {
    int32_t* tokens = plan_.keep.tokens.data() + plan_.keep.offsets[row];
    std::iota(tokens, tokens + plan_.counts.counts[row], 0);
  }
}

// Where the kept keys will be rotated to: their old positions, or 0..n-1.
void KeepDraft::FillPositions() {
  for (const int32_t count : plan_.counts.counts) {
    plan_.max_kept = std::max<int64_t>(plan_.max_kept, count);
  }
  plan_.kept_positions.assign(Rows() * plan_.max_kept, -1);
  const bool renumber = policy().positions == PositionMode::kRenumber;
  for (int64_t row = 0; row < Rows(); ++row) {
    const int64_t layer = row / input().KvHeads(), head = row % input().KvHeads();
    const int32_t* kept = plan_.keep.Row(layer, head);
    for (int32_t slot = 0; slot < plan_.counts.counts[row]; ++slot) {
      plan_.kept_positions[row * plan_.max_kept + slot] =
          renumber ? slot : input().Position(layer, head, kept[slot]);
    }
  }
}

}  // namespace kvern::pipeline
