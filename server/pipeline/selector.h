// Selector: picks tokens from scores under integer counts.
#ifndef KVERN_SERVER_PIPELINE_SELECTOR_H_
#define KVERN_SERVER_PIPELINE_SELECTOR_H_

#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "server/pipeline/sequence_input.h"
#include "server/pipeline/stage_info.h"

namespace kvern::pipeline {

struct SelectInput {
  const SequenceInput* sequence = nullptr;
  MaskView candidates;
  MaskView forced;
  // [layers, kv_heads, tokens], dense memory of the backend; may be rewritten (shared rows).
  ScoreView scores;
  KeepList* keep = nullptr;  // filled, ascending, forced tokens included; rows sized by the planner
};

class Selector {
 public:
  virtual ~Selector() = default;
  virtual bool NeedsScores() const = 0;
  // Lowest class that its sets can have when counts are equal everywhere.
  virtual ShapeClass EqualCountsClass() const = 0;
  // Picks for sequences of one dtype and geometry. An error leaves the picks of all unspecified,
  // also where one sequence is the reason.
  virtual absl::Status Select(Backend& backend, std::span<const SelectInput> cohort) const = 0;

  // A cohort of one.
  absl::Status Select(Backend& backend, SelectInput input, KeepList* keep) const {
    input.keep = keep;
    return Select(backend, std::span<const SelectInput>(&input, 1));
  }
};

struct SelectorEntry {
  StageInfo info;
  absl::StatusOr<std::unique_ptr<Selector>> (*make)(const StageParams& params);
};

std::span<const SelectorEntry> Selectors();
absl::StatusOr<std::unique_ptr<Selector>> MakeSelector(const StageSpec& spec);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_SELECTOR_H_
