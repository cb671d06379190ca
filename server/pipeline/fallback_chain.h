// The scorers of presets and profiles: the first chain whose inputs are there, and why not an
// earlier one.
#ifndef KVERN_SERVER_PIPELINE_FALLBACK_CHAIN_H_
#define KVERN_SERVER_PIPELINE_FALLBACK_CHAIN_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/pipeline/scorer.h"

namespace kvern::pipeline {

struct ScorerSet {
  std::vector<StageSpec> specs;
  std::vector<std::unique_ptr<Scorer>> scorers;
  std::string fallback;  // empty when the first chain runs
};

// Chain of a preset with calibrations but no observed attention.
std::vector<StageSpec> DefaultScorers();

// Inputs that `needed` asks for and `present` lacks. Values come with every sequence.
uint16_t MissingInputs(uint16_t needed, uint16_t present);
// "q_window, rope"
std::string InputNames(uint16_t inputs);
// FailedPrecondition naming what `stage` lacks: ROPE_UNKNOWN if that is only the RoPE, else
// INPUT_MISSING.
absl::Status MissingInputError(absl::string_view stage, uint16_t missing);

// Profile "", "retrieval" or "text". Errors: InvalidArgument for another one; FailedPrecondition
// when no chain of it has its inputs.
absl::StatusOr<ScorerSet> ChooseScorers(absl::string_view profile, uint16_t inputs);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_FALLBACK_CHAIN_H_
