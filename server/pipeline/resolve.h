// From what was asked to what will run: presets, profiles, defaults, fallback chains (ruling 1-3,
// architecture.md 3).
#ifndef KVERN_SERVER_PIPELINE_RESOLVE_H_
#define KVERN_SERVER_PIPELINE_RESOLVE_H_

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/pipeline/budgeter.h"
#include "server/pipeline/codec.h"
#include "server/pipeline/policy.h"
#include "server/pipeline/scorer.h"
#include "server/pipeline/selector.h"

namespace kvern::pipeline {

// What a request has, which decides fallbacks and FAILED_PRECONDITIONs.
struct Availability {
  Source source = Source::kInline;
  uint16_t inputs = 0;  // Inputs bits present
  bool read_only_pool = false;
  bool operator==(const Availability&) const = default;
};

// Everything decided; immutable.
struct ResolvedPolicy {
  std::string preset;                // "custom" without one
  std::optional<Budget> budget;      // nullopt: every token stays
  std::optional<double> byte_share;  // of a preset: bytes = floor(share * bytes before)
  StageSpec budgeter_spec;
  std::unique_ptr<Budgeter> budgeter;
  std::vector<StageSpec> scorer_specs;
  std::vector<std::unique_ptr<Scorer>> scorers;  // empty: every token stays
  BlendKind blend = BlendKind::kMax;
  StageSpec selector_spec;
  std::unique_ptr<Selector> selector;
  CodecPair codecs;
  int64_t sink_tokens = 4;
  int64_t recent_tokens = 32;
  double recent_share = 0.5;
  PositionMode positions = PositionMode::kKeepLogical;
  Placement placement = Placement::kReturn;
  OnConflict on_conflict = OnConflict::kGrowBudget;
  std::string fallback;               // why not the preset's first chain; empty when it is
  std::vector<std::string> warnings;  // e.g. 8-bit keys without rm
  std::string ScorerText() const;     // "max(expected_attention:..., keydiff:...)"
};

// Errors: InvalidArgument (unknown names, parameters, preset; no scorer; bad ranges);
// FailedPrecondition with ErrorReason (engine maps it): a missing input is named;
// CODEC_NEEDS_STORE; ROPE_UNKNOWN; placement that the source cannot take.
absl::StatusOr<ResolvedPolicy> Resolve(const Policy& policy, const Availability& availability);

struct PresetText {
  std::string name;
  std::string help;
  std::string calibrated;  // in the words of the command line
  std::string uncalibrated;
};
std::vector<PresetText> Presets();

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_RESOLVE_H_
