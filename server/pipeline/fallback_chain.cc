// Walks a profile's chains in order of measured quality (architecture.md 3).
#include "server/pipeline/fallback_chain.h"

#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/quoted.h"

namespace kvern::pipeline {
namespace {

constexpr char kExpectedAttention[] = "expected_attention:log=true,rank=8";
constexpr char kKeyDiffPlain[] = "keydiff";
constexpr char kKeyDiff[] = "keydiff:unrotate=true";
constexpr char kAttentionMass[] = "attention_mass:log=true,per_visible=true,value_norm=true";

struct Chain {
  const char* first;
  const char* second;      // null: one scorer
  uint16_t only_with = 0;  // optional inputs: without them the chain is no candidate
};
constexpr Chain kDefaultChains[] = {
    {kAttentionMass, kKeyDiff, kNeedsAttentionMass},
    {kAttentionMass, kKeyDiffPlain, kNeedsAttentionMass},
    {kExpectedAttention, kKeyDiff},
    {kKeyDiff, nullptr},
    {kKeyDiffPlain, nullptr},
};
// A profile is a choice: where it cannot run, the caller hears so.
constexpr Chain kRetrievalChains[] = {{kKeyDiff, nullptr}};
constexpr Chain kTextChains[] = {{kExpectedAttention, nullptr}};

constexpr struct {
  Inputs bit;
  const char* name;
} kInputNames[] = {
    {kNeedsCentres, "calibration"},
    {kNeedsMoments, "query_moments"},
    {kNeedsSensitivity, "layer_sensitivity"},
    {kNeedsQueryWindow, "q_window"},
    {kNeedsAttentionMass, "attention_mass"},
    {kNeedsExternalScores, "external_scores"},
    {kNeedsRope, "rope"},
};

absl::StatusOr<std::span<const Chain>> ChainsOf(absl::string_view profile) {
  if (profile.empty()) return std::span<const Chain>(kDefaultChains);
  if (profile == "retrieval") return std::span<const Chain>(kRetrievalChains);
  if (profile == "text") return std::span<const Chain>(kTextChains);
  return WithField(absl::InvalidArgumentError(
                       absl::StrCat("profile got ", Quoted(profile), ", want retrieval or text")),
                   "policy.profile");
}

absl::StatusOr<ScorerSet> Make(const Chain& chain) {
  ScorerSet set;
  for (const char* text : {chain.first, chain.second}) {
    if (text == nullptr) continue;
    KVERN_ASSIGN_OR_RETURN(StageSpec spec, ParseStageSpec(text));
    KVERN_ASSIGN_OR_RETURN(std::unique_ptr<Scorer> scorer, MakeScorer(spec));
    set.specs.push_back(std::move(spec));
    set.scorers.push_back(std::move(scorer));
  }
  return set;
}

// Of the first scorer that lacks an input; ok when none does.
absl::Status CheckInputs(const ScorerSet& set, uint16_t inputs) {
  for (size_t index = 0; index < set.scorers.size(); ++index) {
    const uint16_t missing = MissingInputs(set.scorers[index]->Inputs(), inputs);
    if (missing != 0) return MissingInputError(ToText(set.specs[index]), missing);
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<StageSpec> DefaultScorers() {
  std::vector<StageSpec> specs;
  for (const char* text : {kExpectedAttention, kKeyDiff}) specs.push_back(*ParseStageSpec(text));
  return specs;
}

uint16_t MissingInputs(uint16_t needed, uint16_t present) {
  return static_cast<uint16_t>(needed & ~(present | kNeedsValues));
}

std::string InputNames(uint16_t inputs) {
  std::string names;
  for (const auto& input : kInputNames) {
    if ((inputs & input.bit) != 0) absl::StrAppend(&names, names.empty() ? "" : ", ", input.name);
  }
  return names;
}

absl::Status MissingInputError(absl::string_view stage, uint16_t missing) {
  return WithReason(
      absl::FailedPreconditionError(absl::StrCat(stage, " needs ", InputNames(missing))),
      missing == kNeedsRope ? "ROPE_UNKNOWN" : "INPUT_MISSING");
}

absl::StatusOr<ScorerSet> ChooseScorers(absl::string_view profile, uint16_t inputs) {
  KVERN_ASSIGN_OR_RETURN(const std::span<const Chain> chains, ChainsOf(profile));
  absl::Status first_refusal;
  for (const Chain& chain : chains) {
    if ((chain.only_with & ~inputs) != 0) continue;
    KVERN_ASSIGN_OR_RETURN(ScorerSet set, Make(chain));
    const absl::Status refusal = CheckInputs(set, inputs);
    if (refusal.ok()) {
      set.fallback = std::string(first_refusal.message());
      return set;
    }
    if (first_refusal.ok()) first_refusal = refusal;
  }
  return WithField(first_refusal, "policy.profile");
}

}  // namespace kvern::pipeline
