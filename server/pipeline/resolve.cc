// Turns what was asked into what will run, or says what is wrong with it; nothing is silently
// replaced unless a preset names its own fallback.
#include "server/pipeline/resolve.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/pipeline/fallback_chain.h"
#include "server/pipeline/presets.h"
#include "server/pipeline/quoted.h"

namespace kvern::pipeline {
namespace {

constexpr size_t kMaxScorers = 16;
constexpr uint8_t kEqualCounts = 0b00111;  // shape classes S0 to S2

absl::Status Refuse(const std::string& message, absl::string_view reason, absl::string_view field) {
  return WithField(WithReason(absl::FailedPreconditionError(message), reason), field);
}
absl::Status Invalid(const std::string& message, absl::string_view field) {
  return WithField(absl::InvalidArgumentError(message), field);
}

// A stage's own field path, below the stage's place in the policy.
absl::Status Below(const absl::Status& status, const std::string& place) {
  const std::string field = FieldOf(status);
  return WithField(status, field.empty() ? place : absl::StrCat(place, ".", field));
}

bool IsSet(const std::optional<std::string>& codec) { return codec && !codec->empty(); }

bool AnyPart(const Policy& policy) {
  return policy.budget || policy.budgeter || !policy.scorers.empty() || policy.blend ||
         policy.selector || IsSet(policy.k_codec) || IsSet(policy.v_codec) || policy.sink_tokens ||
         policy.recent_tokens || policy.recent_share;
}

const char* Name(Placement placement) {
  constexpr const char* kNames[] = {"default",      "COPY_TO",  "COMPACT",
                                    "INDICES_ONLY", "TO_STORE", "RETURN"};
  return kNames[static_cast<size_t>(placement)];
}
const char* Name(Source source) {
  constexpr const char* kNames[] = {"paged", "stored", "inline"};
  return kNames[static_cast<size_t>(source)];
}

Placement DefaultPlacement(Source source) {
  switch (source) {
    case Source::kPaged:
      return Placement::kCopyTo;
    case Source::kStored:
      return Placement::kToStore;
    case Source::kInline:
      break;
  }
  return Placement::kReturn;
}

bool Takes(Source source, Placement placement) {
  switch (placement) {
    case Placement::kCopyTo:
    case Placement::kCompact:
      return source == Source::kPaged;
    case Placement::kToStore:
      return source != Source::kInline;
    case Placement::kReturn:
      return source == Source::kInline;
    case Placement::kIndicesOnly:
    case Placement::kDefault:
      break;
  }
  return true;
}

absl::StatusOr<Placement> ResolvePlacement(const Policy& policy, const Availability& available) {
  const Placement placement = policy.placement == Placement::kDefault
                                  ? DefaultPlacement(available.source)
                                  : policy.placement;
  if (!Takes(available.source, placement)) {
    return Refuse(absl::StrCat("placement got ", Name(placement), " for a ", Name(available.source),
                               " source, want one that it takes"),
                  "PLACEMENT_UNSUPPORTED", "policy.placement");
  }
  const bool writes = placement == Placement::kCopyTo || placement == Placement::kCompact;
  if (writes && available.read_only_pool) {
    return Refuse(absl::StrCat("placement got ", Name(placement),
                               " for a read-only pool, want INDICES_ONLY or TO_STORE"),
                  "POOL_READ_ONLY", "policy.placement");
  }
  return placement;
}

// Null: custom parts only (ruling 2).
absl::StatusOr<const Preset*> ResolvePreset(const Policy& policy, Placement placement) {
  if (!policy.preset.empty()) {
    const Preset* preset = FindPreset(policy.preset);
    if (preset != nullptr) return preset;
    return Invalid(
        absl::StrCat("preset got ", Quoted(policy.preset), ", want one of ", PresetNames()),
        "policy.preset");
  }
  if (AnyPart(policy)) return static_cast<const Preset*>(nullptr);
  const bool stock = placement == Placement::kCopyTo || placement == Placement::kCompact;
  return FindPreset(stock ? "evict50" : "balanced");
}

absl::Status CheckBudget(const Budget& budget) {
  if (const auto* tokens = std::get_if<TokenBudget>(&budget); tokens && tokens->tokens < 0) {
    return Invalid(absl::StrCat("tokens got ", tokens->tokens, ", want 0 or more"),
                   "policy.budget.tokens");
  }
  if (const auto* bytes = std::get_if<ByteBudget>(&budget); bytes && bytes->bytes < 0) {
    return Invalid(absl::StrCat("bytes got ", bytes->bytes, ", want 0 or more"),
                   "policy.budget.bytes");
  }
  const auto* keep = std::get_if<KeepRatioBudget>(&budget);
  if (keep != nullptr && !(keep->ratio > 0 && keep->ratio <= 1)) {  // NaN fails too
    return Invalid(absl::StrCat("keep_ratio got ", keep->ratio, ", want in (0, 1]"),
                   "policy.budget.keep_ratio");
  }
  return absl::OkStatus();
}

class Resolver {
 public:
  Resolver(const Policy& policy, const Availability& available)
      : policy_(policy), available_(available) {}

  absl::StatusOr<ResolvedPolicy> Run() {
    KVERN_ASSIGN_OR_RETURN(out_.placement, ResolvePlacement(policy_, available_));
    KVERN_ASSIGN_OR_RETURN(preset_, ResolvePreset(policy_, out_.placement));
    out_.preset = preset_ == nullptr ? "custom" : preset_->name;
    if (preset_ != nullptr) TakePresetParts();
    out_.positions = policy_.positions;
    out_.on_conflict = policy_.on_conflict;
    KVERN_RETURN_IF_ERROR(ResolveBudget());
    KVERN_RETURN_IF_ERROR(ResolveProtection());
    KVERN_RETURN_IF_ERROR(ResolveCodecs());
    KVERN_RETURN_IF_ERROR(ResolveBudgeter());
    KVERN_RETURN_IF_ERROR(ResolveSelector());
    KVERN_RETURN_IF_ERROR(ResolveScorers());
    KVERN_RETURN_IF_ERROR(CheckRenumber());
    return std::move(out_);
  }

 private:
  bool IsCalibrated() const { return (available_.inputs & kNeedsSensitivity) != 0; }

  void TakePresetParts() {
    parts_ = IsCalibrated() ? preset_->calibrated : preset_->uncalibrated;
    if (!preset_->prefers_calibration || IsCalibrated()) return;
    out_.fallback = absl::StrCat(preset_->name, " needs layer_sensitivity: its uncalibrated form");
  }

  // Ruling 2: only a codec given keeps every token; so does a preset without a budget.
  bool KeepsEverything() const { return !out_.budget && !out_.byte_share && !SelectsTokens(); }
  bool SelectsTokens() const {
    const bool asked = policy_.budgeter || !policy_.scorers.empty() || policy_.blend ||
                       policy_.selector || !policy_.profile.empty();
    const bool codec = IsSet(policy_.k_codec) || IsSet(policy_.v_codec);
    return preset_ == nullptr && (asked || !codec);
  }

  absl::Status ResolveBudget() {
    out_.budget = policy_.budget;
    if (out_.budget) return CheckBudget(*out_.budget);
    if (parts_.byte_share > 0) out_.byte_share = parts_.byte_share;
    if (parts_.keep_ratio > 0) out_.budget = KeepRatioBudget{parts_.keep_ratio};
    return absl::OkStatus();
  }

  absl::Status ResolveProtection() {
    out_.sink_tokens = policy_.sink_tokens.value_or(out_.sink_tokens);
    out_.recent_tokens = policy_.recent_tokens.value_or(out_.recent_tokens);
    out_.recent_share = policy_.recent_share.value_or(out_.recent_share);
    if (out_.sink_tokens < 0) {
      return Invalid(absl::StrCat("sink_tokens got ", out_.sink_tokens, ", want 0 or more"),
                     "policy.sink_tokens");
    }
    if (out_.recent_tokens < 0) {
      return Invalid(absl::StrCat("recent_tokens got ", out_.recent_tokens, ", want 0 or more"),
                     "policy.recent_tokens");
    }
    if (!(out_.recent_share >= 0 && out_.recent_share <= 1)) {
      return Invalid(absl::StrCat("recent_share got ", out_.recent_share, ", want in [0, 1]"),
                     "policy.recent_share");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<CodecSpec> ResolveCodec(Role role) const {
    const bool key = role == Role::kKey;
    const std::optional<std::string>& given = key ? policy_.k_codec : policy_.v_codec;
    const absl::string_view fallback = key ? parts_.k_codec : parts_.v_codec;
    const std::string field = key ? "policy.codecs.k" : "policy.codecs.v";
    absl::StatusOr<CodecSpec> codec =
        ParseCodec(IsSet(given) ? absl::string_view(*given) : fallback, role);
    if (!codec.ok()) return WithField(codec.status(), field);
    const bool stores =
        out_.placement == Placement::kToStore || out_.placement == Placement::kReturn;
    if (codec->id != CodecId::kRaw16 && !stores) {
      return Refuse(absl::StrCat("codec ", ToText(*codec), " got placement ", Name(out_.placement),
                                 ", want TO_STORE or RETURN, or raw16 (preset evict50)"),
                    "CODEC_NEEDS_STORE", field);
    }
    return codec;
  }

  absl::Status ResolveCodecs() {
    KVERN_ASSIGN_OR_RETURN(out_.codecs.k, ResolveCodec(Role::kKey));
    KVERN_ASSIGN_OR_RETURN(out_.codecs.v, ResolveCodec(Role::kValue));
    const CodecSpec k = out_.codecs.k;
    const bool removes_mean = (k.flags & kFlagRopeMean) != 0;
    if (removes_mean && MissingInputs(kNeedsRope, available_.inputs) != 0) {
      return WithField(MissingInputError(absl::StrCat("codec ", ToText(k)), kNeedsRope),
                       "policy.codecs.k");
    }
    if (EntryOf(k.id).takes_rope_mean && !removes_mean) {
      out_.warnings.push_back(absl::StrCat(
          "k codec ", ToText(k), " without rm: 12 to 33 times the error where keys have a large ",
          "bias; ", ToText(k), "+rm costs one mean key per layer and head"));
    }
    return absl::OkStatus();
  }

  absl::Status ResolveBudgeter() {
    KVERN_ASSIGN_OR_RETURN(out_.budgeter_spec, ParseStageSpec(parts_.budgeter));
    // A budget of the caller's own is spread as the preset would.
    if (policy_.budgeter) out_.budgeter_spec = *policy_.budgeter;
    absl::StatusOr<std::unique_ptr<Budgeter>> budgeter = MakeBudgeter(out_.budgeter_spec);
    if (!budgeter.ok()) return Below(budgeter.status(), "policy.budgeter");
    out_.budgeter = *std::move(budgeter);
    const StageInfo& info = InfoOf(Budgeters(), out_.budgeter_spec);
    const uint16_t missing = MissingInputs(info.inputs, available_.inputs);
    if (missing == 0) return absl::OkStatus();
    return WithField(MissingInputError(out_.budgeter_spec.name, missing), "policy.budgeter");
  }

  absl::Status ResolveSelector() {
    out_.selector_spec = policy_.selector.value_or(StageSpec{"topk", {}});
    absl::StatusOr<std::unique_ptr<Selector>> selector = MakeSelector(out_.selector_spec);
    if (!selector.ok()) return Below(selector.status(), "policy.selector");
    out_.selector = *std::move(selector);
    return absl::OkStatus();
  }

  absl::Status ResolveScorers() {
    out_.blend = policy_.blend.value_or(BlendKind::kMax);
    if (!policy_.scorers.empty() && !policy_.profile.empty()) {
      return Invalid("profile got set beside scorers, want one of the two", "policy.profile");
    }
    // The fallback chains are the presets' own; custom parts name their scorers.
    const bool chained = preset_ != nullptr || !policy_.profile.empty();
    if (KeepsEverything() && policy_.scorers.empty()) {
      // Even a profile that has nothing to score must be one.
      return policy_.profile.empty() ? absl::OkStatus()
                                     : ChooseScorers(policy_.profile, ~uint16_t{0}).status();
    }
    if (!policy_.scorers.empty()) {
      KVERN_RETURN_IF_ERROR(MakeGivenScorers());
    } else if (chained) {
      KVERN_RETURN_IF_ERROR(TakeChain());
    } else if (out_.selector->NeedsScores()) {
      return Invalid("scorers got none, want one, or a preset", "policy.scorers");
    }
    if (!out_.budget && !out_.byte_share && preset_ == nullptr) {
      return Invalid("budget got none, want tokens, keep_ratio or bytes, or a preset",
                     "policy.budget");
    }
    return absl::OkStatus();
  }

  absl::Status TakeChain() {
    KVERN_ASSIGN_OR_RETURN(ScorerSet set, ChooseScorers(policy_.profile, available_.inputs));
    out_.scorer_specs = std::move(set.specs);
    out_.scorers = std::move(set.scorers);
    if (set.fallback.empty()) return absl::OkStatus();
    absl::StrAppend(&out_.fallback, out_.fallback.empty() ? "" : "; ", set.fallback, ": ",
                    out_.ScorerText());
    return absl::OkStatus();
  }

  absl::Status MakeGivenScorers() {
    if (policy_.scorers.size() > kMaxScorers) {
      return Invalid(
          absl::StrCat("scorers got ", policy_.scorers.size(), ", want at most ", kMaxScorers),
          "policy.scorers");
    }
    for (size_t index = 0; index < policy_.scorers.size(); ++index) {
      const StageSpec& spec = policy_.scorers[index];
      const std::string place = absl::StrCat("policy.scorers[", index, "]");
      absl::StatusOr<std::unique_ptr<Scorer>> scorer = MakeScorer(spec);
      if (!scorer.ok()) return Below(scorer.status(), place);
      const uint16_t missing = MissingInputs((*scorer)->Inputs(), available_.inputs);
      if (missing != 0) return WithField(MissingInputError(spec.name, missing), place);
      out_.scorer_specs.push_back(spec);
      out_.scorers.push_back(*std::move(scorer));
    }
    return absl::OkStatus();
  }

  template <class Entry>
  static const StageInfo& InfoOf(std::span<const Entry> entries, const StageSpec& spec) {
    for (const Entry& entry : entries) {
      if (spec.name == entry.info.name) return entry.info;
    }
    KVERN_CHECK(false);
    return entries[0].info;
  }

  absl::Status CheckRenumber() const {
    if (out_.positions != PositionMode::kRenumber) return absl::OkStatus();
    if (MissingInputs(kNeedsRope, available_.inputs) != 0) {
      return WithField(MissingInputError("RENUMBER", kNeedsRope), "policy.positions");
    }
    if (KeepsEverything()) return absl::OkStatus();
    const std::pair<const StageInfo&, absl::string_view> stages[] = {
        {InfoOf(Budgeters(), out_.budgeter_spec), "policy.budgeter"},
        {InfoOf(Selectors(), out_.selector_spec), "policy.selector"}};
    for (const auto& [info, field] : stages) {
      if ((info.shape_classes & kEqualCounts) != 0) continue;
      return Refuse(absl::StrCat("RENUMBER got ", info.name,
                                 ", want stages that keep equal counts everywhere (S0 to S2)"),
                    "SHAPE_CLASS", field);
    }
    return absl::OkStatus();
  }

  const Policy& policy_;
  const Availability& available_;
  const Preset* preset_ = nullptr;
  PresetParts parts_;
  ResolvedPolicy out_;
};

}  // namespace

std::string ResolvedPolicy::ScorerText() const {
  std::string text;
  for (const StageSpec& spec : scorer_specs) {
    absl::StrAppend(&text, text.empty() ? "" : ", ", ToText(spec));
  }
  if (scorer_specs.size() < 2) return text;
  return absl::StrCat(blend == BlendKind::kMax ? "max(" : "sum(", text, ")");
}

absl::StatusOr<ResolvedPolicy> Resolve(const Policy& policy, const Availability& availability) {
  return Resolver(policy, availability).Run();
}

}  // namespace kvern::pipeline
