// A policy of the wire becomes the pipeline's, unset staying unset so that presets can fill it.
#include "server/rpc/policy_from_proto.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/engine/observed_queries.h"
#include "server/rpc/name_from_proto.h"

namespace kvern::rpc {
namespace {

constexpr int64_t kMaxWordBytes = 64;
constexpr int64_t kMaxParams = 64;
constexpr int64_t kMaxScorers = 16;
constexpr int64_t kMaxCalibrations = 16;

absl::Status CheckWord(const std::string& word, const FieldPath& path) {
  return CheckCount(path, static_cast<int64_t>(word.size()), kMaxWordBytes, "bytes");
}

absl::Status UnknownEnum(const FieldPath& path, int value) {
  return BadField(path, absl::StrCat("got ", value, ", want a declared value of the enum"));
}

absl::StatusOr<pipeline::StageSpec> FromProto(const v1::StageSpec& spec, const FieldPath& path) {
  if (spec.name().empty()) return BadField(path.Child("name"), "got nothing, want a stage's name");
  KVERN_RETURN_IF_ERROR(CheckWord(spec.name(), path.Child("name")));
  const FieldPath params = path.Child("params");
  KVERN_RETURN_IF_ERROR(
      CheckCount(params, static_cast<int64_t>(spec.params().size()), kMaxParams, "parameters"));
  pipeline::StageSpec stage{.name = spec.name(), .params = {}};
  for (const auto& [key, value] : spec.params()) {
    KVERN_RETURN_IF_ERROR(CheckWord(key, params));
    KVERN_RETURN_IF_ERROR(CheckWord(value, params));
    stage.params.emplace(key, value);
  }
  return stage;
}

absl::StatusOr<pipeline::Budget> FromProto(const v1::Budget& budget, const Limits& limits,
                                           const FieldPath& path) {
  if (budget.amount_case() == v1::Budget::kTokens) {
    KVERN_RETURN_IF_ERROR(
        CheckRange(path.Child("tokens"), budget.tokens(), 0, limits.tokens_per_sequence));
    return pipeline::TokenBudget{budget.tokens()};
  }
  if (budget.amount_case() == v1::Budget::kKeepRatio) {
    const double ratio = budget.keep_ratio();
    // Written so that NaN fails.
    if (!(ratio > 0.0 && ratio <= 1.0)) {
      return BadField(path.Child("keep_ratio"), absl::StrCat("got ", ratio, ", want (0, 1]"));
    }
    return pipeline::KeepRatioBudget{ratio};
  }
  if (budget.bytes() < 0) {
    return BadField(path.Child("bytes"), absl::StrCat("got ", budget.bytes(), ", want 0 or more"));
  }
  return pipeline::ByteBudget{budget.bytes()};
}

absl::Status SetStages(const v1::Policy& policy, const FieldPath& path, pipeline::Policy* out) {
  if (policy.has_budgeter()) {
    KVERN_ASSIGN_OR_RETURN(out->budgeter, FromProto(policy.budgeter(), path.Child("budgeter")));
  }
  const FieldPath scorers = path.Child("scorers");
  KVERN_RETURN_IF_ERROR(CheckCount(scorers, policy.scorers_size(), kMaxScorers, "scorers"));
  for (int i = 0; i < policy.scorers_size(); ++i) {
    KVERN_ASSIGN_OR_RETURN(pipeline::StageSpec scorer, FromProto(policy.scorers(i), scorers.At(i)));
    out->scorers.push_back(std::move(scorer));
  }
  if (policy.has_selector()) {
    KVERN_ASSIGN_OR_RETURN(out->selector, FromProto(policy.selector(), path.Child("selector")));
  }
  const FieldPath codecs = path.Child("codecs");
  KVERN_RETURN_IF_ERROR(CheckWord(policy.codecs().k(), codecs.Child("k")));
  KVERN_RETURN_IF_ERROR(CheckWord(policy.codecs().v(), codecs.Child("v")));
  if (!policy.codecs().k().empty()) out->k_codec = policy.codecs().k();
  if (!policy.codecs().v().empty()) out->v_codec = policy.codecs().v();
  return absl::OkStatus();
}

absl::Status SetProtection(const v1::Policy& policy, const Limits& limits, const FieldPath& path,
                           pipeline::Policy* out) {
  if (policy.has_sink_tokens()) {
    KVERN_RETURN_IF_ERROR(
        CheckRange(path.Child("sink_tokens"), policy.sink_tokens(), 0, limits.tokens_per_sequence));
    out->sink_tokens = policy.sink_tokens();
  }
  if (policy.has_recent_tokens()) {
    KVERN_RETURN_IF_ERROR(CheckRange(path.Child("recent_tokens"), policy.recent_tokens(), 0,
                                     limits.tokens_per_sequence));
    out->recent_tokens = policy.recent_tokens();
  }
  if (policy.has_recent_share()) {
    const double share = policy.recent_share();
    if (!(share >= 0.0 && share <= 1.0)) {
      return BadField(path.Child("recent_share"), absl::StrCat("got ", share, ", want [0, 1]"));
    }
    out->recent_share = share;
  }
  return absl::OkStatus();
}

absl::Status SetPlacement(v1::Placement placement, const FieldPath& path, pipeline::Policy* out) {
  switch (placement) {
    case v1::PLACEMENT_UNSPECIFIED:
      out->placement = pipeline::Placement::kDefault;
      return absl::OkStatus();
    case v1::PLACEMENT_COPY_TO:
      out->placement = pipeline::Placement::kCopyTo;
      return absl::OkStatus();
    case v1::PLACEMENT_COMPACT:
      out->placement = pipeline::Placement::kCompact;
      return absl::OkStatus();
    case v1::PLACEMENT_INDICES_ONLY:
      out->placement = pipeline::Placement::kIndicesOnly;
      return absl::OkStatus();
    case v1::PLACEMENT_TO_STORE:
      out->placement = pipeline::Placement::kToStore;
      return absl::OkStatus();
    case v1::PLACEMENT_RETURN:
      out->placement = pipeline::Placement::kReturn;
      return absl::OkStatus();
    default:
      return UnknownEnum(path, placement);
  }
}

absl::Status SetModes(const v1::Policy& policy, const FieldPath& path, pipeline::Policy* out) {
  switch (policy.blend()) {
    case v1::BLEND_UNSPECIFIED:
      break;
    case v1::BLEND_MAX:
      out->blend = BlendKind::kMax;
      break;
    case v1::BLEND_SUM:
      out->blend = BlendKind::kSum;
      break;
    default:
      return UnknownEnum(path.Child("blend"), policy.blend());
  }
  switch (policy.positions()) {
    case v1::POSITION_MODE_UNSPECIFIED:
    case v1::POSITION_MODE_KEEP_LOGICAL:
      out->positions = pipeline::PositionMode::kKeepLogical;
      break;
    case v1::POSITION_MODE_RENUMBER:
      out->positions = pipeline::PositionMode::kRenumber;
      break;
    default:
      return UnknownEnum(path.Child("positions"), policy.positions());
  }
  switch (policy.on_conflict()) {
    case v1::ON_CONFLICT_UNSPECIFIED:
    case v1::ON_CONFLICT_GROW_BUDGET:
      out->on_conflict = pipeline::OnConflict::kGrowBudget;
      break;
    case v1::ON_CONFLICT_FAIL:
      out->on_conflict = pipeline::OnConflict::kFail;
      break;
    case v1::ON_CONFLICT_TRIM_OLDEST:
      out->on_conflict = pipeline::OnConflict::kTrimOldest;
      break;
    default:
      return UnknownEnum(path.Child("on_conflict"), policy.on_conflict());
  }
  return SetPlacement(policy.placement(), path.Child("placement"), out);
}

absl::Status SetCalibrations(const v1::Policy& policy, const FieldPath& path,
                             pipeline::Policy* out) {
  const FieldPath names = path.Child("calibrations");
  KVERN_RETURN_IF_ERROR(
      CheckCount(names, policy.calibrations_size(), kMaxCalibrations, "calibrations"));
  for (int i = 0; i < policy.calibrations_size(); ++i) {
    if (policy.calibrations(i) == absl::StrCat("calibrations/", engine::kObservedCalibration)) {
      out->calibrations.emplace_back(engine::kObservedCalibration);
      continue;
    }
    KVERN_ASSIGN_OR_RETURN(std::string sha256, ParseName(policy.calibrations(i),
                                                         Collection::kCalibrations, names.At(i)));
    out->calibrations.push_back(std::move(sha256));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<pipeline::Policy> FromProto(const v1::Policy& policy, const Limits& limits,
                                           const FieldPath& path) {
  pipeline::Policy out;
  KVERN_RETURN_IF_ERROR(CheckWord(policy.preset(), path.Child("preset")));
  out.preset = policy.preset();
  out.profile = policy.profile();
  if (!out.profile.empty() && out.profile != "retrieval" && out.profile != "text") {
    return BadField(path.Child("profile"),
                    absl::StrCat("got ", Quoted(out.profile), ", want retrieval or text"));
  }
  if (policy.budget().amount_case() != v1::Budget::AMOUNT_NOT_SET) {
    KVERN_ASSIGN_OR_RETURN(out.budget, FromProto(policy.budget(), limits, path.Child("budget")));
  }
  KVERN_RETURN_IF_ERROR(SetStages(policy, path, &out));
  KVERN_RETURN_IF_ERROR(SetProtection(policy, limits, path, &out));
  KVERN_RETURN_IF_ERROR(SetModes(policy, path, &out));
  KVERN_RETURN_IF_ERROR(SetCalibrations(policy, path, &out));
  return out;
}

absl::StatusOr<pipeline::ShapeClass> FromProto(v1::ShapeClass shape_class, const FieldPath& path) {
  switch (shape_class) {
    case v1::SHAPE_CLASS_S0:
      return pipeline::ShapeClass::kS0;
    case v1::SHAPE_CLASS_S1:
      return pipeline::ShapeClass::kS1;
    case v1::SHAPE_CLASS_UNSPECIFIED:
    case v1::SHAPE_CLASS_S2:
      return pipeline::ShapeClass::kS2;
    case v1::SHAPE_CLASS_S3:
      return pipeline::ShapeClass::kS3;
    case v1::SHAPE_CLASS_S4:
      return pipeline::ShapeClass::kS4;
    default:
      return UnknownEnum(path, shape_class);
  }
}

}  // namespace kvern::rpc
