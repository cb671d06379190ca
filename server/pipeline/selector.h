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
  ScoreView scores;  // [layers, kv_heads, tokens]; may be rewritten (shared rows)
};

class Selector {
 public:
  virtual ~Selector() = default;
  virtual bool NeedsScores() const = 0;
  // Lowest class that its sets can have when counts are equal everywhere.
  virtual ShapeClass EqualCountsClass() const = 0;
  // Fills keep (rows sized by the planner), ascending, forced tokens included.
  virtual absl::Status Select(Backend& backend, const SelectInput& input, KeepList* keep) const = 0;
};

struct SelectorEntry {
  StageInfo info;
  absl::StatusOr<std::unique_ptr<Selector>> (*make)(const StageParams& params);
};

std::span<const SelectorEntry> Selectors();
absl::StatusOr<std::unique_ptr<Selector>> MakeSelector(const StageSpec& spec);

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_SELECTOR_H_
