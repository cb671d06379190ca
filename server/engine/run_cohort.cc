// Before anything moves, a cohort that fails is halved until the sequence that made it fail is
// alone, or until what is left fits the device; afterwards there is nothing left to try again.
#include "server/engine/run_cohort.h"

#include <algorithm>
#include <memory>
#include <new>
#include <span>
#include <utility>

#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/engine/placement.h"
#include "server/engine/sequence_run.h"
#include "server/pipeline/plan.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;

// Sequences of the same stages, none of which failed yet.
using Members = std::span<SequenceRun* const>;

absl::Status Plan(const CallRun& call, Members members) {
  try {
    ScratchVector<pipeline::KeepTask> tasks;
    for (SequenceRun* member : members) {
      KVERN_RETURN_IF_ERROR(member->Stage());
      if (!member->IsChosen()) tasks.push_back(member->ToPlan());
    }
    if (tasks.empty()) return absl::OkStatus();  // a call applies plans, or it does not
    KVERN_ASSIGN_OR_RETURN(ScratchVector<pipeline::KeepOutcome> plans,
                           pipeline::PlanKeep(call.workplace.backend, tasks));
    for (size_t at = 0; at < members.size(); ++at) members[at]->SetPlan(std::move(plans[at]));
    return absl::OkStatus();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("sequence: got no memory for its plan, want more of it");
  }
}

// Whether fewer sequences may do better: not when the call is unwanted or the device broken.
bool MayPassApart(const CallRun& call, const absl::Status& status) {
  return !IsStop(status) && !absl::IsInternal(status) && call.workplace.backend.Health().ok();
}

void MoveBytes(const CallRun& call, Placement placement, PlacingCohort moving) {
  switch (placement) {
    case Placement::kCopyTo:
      return CopyTo(moving);
    case Placement::kCompact:
      return Compact(moving);
    case Placement::kToStore:
      return WriteToStore(moving, call.workplace.store);
    case Placement::kReturn:
      return Return(moving);
    case Placement::kIndicesOnly:
    case Placement::kDefault:
      return;
  }
}

// The time of a cohort is divided among its sequences by their tokens. What moved stands, so a lap
// that fails has no time to tell and nothing else.
void TellTime(const absl::StatusOr<int64_t>& lap, PlacingCohort moving) {
  if (!lap.ok()) return;
  int64_t tokens = 0;
  for (const Placing* placing : moving) tokens += placing->source.input.Tokens();
  for (Placing* placing : moving) {
    pipeline::StageMicros& micros = placing->result.micros;
    const int64_t own = tokens == 0 ? *lap / static_cast<int64_t>(moving.size())
                                    : *lap * placing->source.input.Tokens() / tokens;
    (placing->policy.codecs.Packs() ? micros.encode : micros.move) = own;
  }
}

// Whether the device had no room for all of them at once and nothing is lost yet.
bool FitsApart(Placement placement, PlacingCohort moving) {
  return moving.size() > 1 && placement != Placement::kCompact &&
         std::all_of(moving.begin(), moving.end(), [](const Placing* placing) {
           return absl::IsResourceExhausted(placing->status);
         });
}

void Place(const CallRun& call, Members members) {
  ScratchVector<SequenceRun*> movers;
  ScratchVector<Placing*> moving;
  for (SequenceRun* member : members) {
    if (!member->Ok() || !member->Moves()) continue;
    movers.push_back(member);
    moving.push_back(member->ToPlace());
  }
  if (moving.empty()) return;
  const Placement placement = movers[0]->Where();
  Backend& backend = call.workplace.backend;
  backend.Lap().IgnoreError();  // planning is not moving
  try {
    MoveBytes(call, placement, moving);
  } catch (const std::bad_alloc&) {
    for (SequenceRun* mover : movers) mover->FailForMemory();
    return;
  }
  if (FitsApart(placement, moving)) {
    const Members all(movers);
    Place(call, all.first(all.size() / 2));
    return Place(call, all.subspan(all.size() / 2));
  }
  TellTime(backend.Lap(), moving);
  for (size_t at = 0; at < movers.size(); ++at) {
    if (!moving[at]->status.ok()) movers[at]->Fail(moving[at]->status);
  }
}

void RunMembers(const CallRun& call, Members members) {
  const absl::Status planned = Plan(call, members);
  if (!planned.ok() && members.size() > 1 && MayPassApart(call, planned)) {
    for (SequenceRun* member : members) member->Release();
    const size_t half = members.size() / 2;
    RunMembers(call, members.first(half));
    return RunMembers(call, members.subspan(half));
  }
  for (SequenceRun* member : members) {
    if (!planned.ok()) member->Fail(planned);
    member->Do(&SequenceRun::TakePlan);
    member->Do(&SequenceRun::Describe);
  }
  if (!call.job.validate_only) {
    Place(call, members);
    for (SequenceRun* member : members) member->Do(&SequenceRun::Publish);
  }
  for (SequenceRun* member : members) {
    member->Do(&SequenceRun::Finish);
    member->Release();
  }
}

}  // namespace

void RunCohort(CallRun* call, size_t first, size_t count, ScratchVector<SequenceResult>* results) {
  const BoundStop bound(call->workplace.backend, &call->stop, nullptr);
  ScratchVector<std::unique_ptr<SequenceRun>> runs;
  ScratchVector<SequenceRun*> ungrouped, members, others;
  for (size_t index = first; index < first + count; ++index) {
    runs.push_back(std::make_unique<SequenceRun>(call, index));
    runs.back()->Do(&SequenceRun::Begin);
    if (runs.back()->Ok()) ungrouped.push_back(runs.back().get());
  }
  while (!ungrouped.empty()) {
    for (SequenceRun* run : ungrouped) {
      (run->SameStages(*ungrouped.front()) ? members : others).push_back(run);
    }
    RunMembers(*call, members);
    ungrouped.swap(others);
    members.clear();
    others.clear();
  }
  for (const auto& run : runs) results->push_back(run->Conclude());
}

}  // namespace kvern::engine
