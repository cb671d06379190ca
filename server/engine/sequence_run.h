// One sequence on its way from its job to its result, phase by phase: begin, plan, describe, place,
// publish, finish. What several sequences can do at once (plan, place) their cohort does.
#ifndef KVERN_SERVER_ENGINE_SEQUENCE_RUN_H_
#define KVERN_SERVER_ENGINE_SEQUENCE_RUN_H_

#include <cstddef>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "kernels/base/reuse.h"
#include "server/engine/call_run.h"
#include "server/engine/placement.h"
#include "server/engine/policy_cache.h"
#include "server/engine/response_size.h"
#include "server/engine/source.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/resolve.h"

namespace kvern::engine {

// Not thread-safe. Pinned: tasks and placings point into it.
class SequenceRun final : public Recycled<SequenceRun> {
 public:
  // `call` outlives the run.
  SequenceRun(CallRun* call, size_t index);
  SequenceRun(const SequenceRun&) = delete;
  SequenceRun& operator=(const SequenceRun&) = delete;

  // Runs a phase, unless the sequence failed before. Want of memory is an error as any other; after
  // a move in place it means that the sequence is lost.
  using Phase = absl::Status (SequenceRun::*)();
  void Do(Phase phase);
  void Fail(const absl::Status& status) { status_ = status; }
  void FailForMemory();
  bool Ok() const { return status_.ok(); }

  // Phases, in this order; ResourceExhausted and the like belong to this sequence alone.
  absl::Status Begin();     // binds the source, resolves the policy, plans counts and tables
  absl::Status TakePlan();  // after SetPlan
  absl::Status Describe();  // all that needs memory, before the first byte moves
  absl::Status Publish();   // after the place holds all bytes
  absl::Status Finish();
  // The last one: what happened, told to the observers too.
  SequenceResult Conclude();

  // Whether one op may serve both: same stages, placement and dtype. After Begin.
  bool SameStages(const SequenceRun& other) const;
  // Brings rows to where ops reach them, if any op will read them; until Release.
  absl::Status Stage();
  // Gives back what only ops needed: copies of rows, rotation tables.
  void Release();
  // Points into this; no plan exists yet.
  pipeline::KeepTask ToPlan() const;
  // An earlier call planned it: there is nothing to ask the stages.
  bool IsChosen() const { return job_.chosen != nullptr; }
  void SetPlan(pipeline::KeepOutcome plan) { planned_ = std::move(plan); }
  bool Moves() const;
  pipeline::Placement Where() const { return policy_->placement; }
  // Points into this, which is described and moves.
  Placing* ToPlace();

 private:
  absl::Status Bind();
  absl::Status BindPositions();
  absl::Status CheckEpoch();
  absl::Status DecideCounts();
  absl::Status Decide();
  absl::Status PlanBlocks();
  bool IsIdentity() const;
  SlotOwner Owner() const;
  absl::Status CheckShape(pipeline::ShapeClass shape) const;
  absl::Status CheckResponse();
  void DescribeSlots();
  void Notify() const;

  CallRun& call_;
  const SequenceJob& job_;
  const size_t index_;
  SequenceResult result_;
  absl::Status status_;
  std::unique_ptr<BoundSource> source_;
  std::shared_ptr<const RememberedSlots> remembered_;
  std::shared_ptr<const KnownPolicy> known_;  // null before it is resolved
  const pipeline::ResolvedPolicy* policy_;    // of known_
  ResponseFields fields_;
  std::optional<pipeline::KeepOutcome> planned_;  // until TakePlan
  pipeline::KeepPlan plan_;                       // counts from Begin on
  bool identity_ = false;
  bool guessed_positions_ = false;
  std::optional<Placing> placing_;
  std::shared_ptr<const RememberedSlots> slots_;  // to be remembered
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_SEQUENCE_RUN_H_
