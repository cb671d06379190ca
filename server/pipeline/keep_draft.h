// The part of a keep plan that the host makes of one sequence: counts, masks, shape class before
// its scores, positions after the selector's pick.
#ifndef KVERN_SERVER_PIPELINE_KEEP_DRAFT_H_
#define KVERN_SERVER_PIPELINE_KEEP_DRAFT_H_

#include <cstdint>

#include "absl/status/status.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/token_masks.h"

namespace kvern::pipeline {

class KeepDraft {
 public:
  // The task's pointers outlive the draft.
  explicit KeepDraft(const KeepTask& task) : task_(task) {}

  // Counts, class and masks; checks what the scorers need. Errors: of PlanCounts;
  // FailedPrecondition/SHAPE_CLASS, ROPE_UNKNOWN, READONLY_POSITIONS, INPUT_MISSING.
  absl::Status Begin();
  // False when everything stays: nothing is judged, the keep list is complete.
  bool Chooses() const { return chooses_; }
  // Call once, when the keep list is complete.
  KeepPlan Finish();

  const KeepTask& task() const { return task_; }
  const SequenceInput& input() const { return *task_.input; }
  const ResolvedPolicy& policy() const { return *task_.policy; }
  const TokenMasks& masks() const { return masks_; }
  KeepPlan& plan() { return plan_; }
  int64_t Rows() const { return input().Layers() * input().KvHeads(); }
  int64_t Cells() const { return Rows() * input().Tokens(); }

 private:
  absl::Status Prepare();
  absl::Status CheckRenumber() const;
  absl::Status CheckReadOnlyPositions() const;
  absl::Status CheckForcedFits() const;
  absl::Status CheckScorers() const;
  void KeepEverything();
  void FillPositions();

  const KeepTask task_;
  bool chooses_ = false;
  TokenMasks masks_;
  KeepPlan plan_;
};

}  // namespace kvern::pipeline

#endif  // KVERN_SERVER_PIPELINE_KEEP_DRAFT_H_
