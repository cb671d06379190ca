// What PlanCompression chose for one sequence, and how it becomes a job again.
#ifndef KVERN_SERVER_ENGINE_CHOSEN_PLAN_H_
#define KVERN_SERVER_ENGINE_CHOSEN_PLAN_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/engine/compress_job.h"
#include "server/engine/model_registry.h"
#include "server/engine/sequence_memory.h"
#include "server/engine/source.h"
#include "server/memory/pool.h"
#include "server/memory/store.h"
#include "server/pipeline/plan.h"

namespace kvern::engine {

// Owns no memory of a pool or of the store.
struct ChosenPlan {
  pipeline::KeepPlan keep;              // of the planned tokens; without rotation tables
  pipeline::Availability available;     // what the policy was resolved with
  pipeline::Calibrations calibrations;  // what is said of them; without the artifacts
  // Slots as they were planned.
  std::shared_ptr<const RememberedSlots> slots;
  bool guessed_positions = false;
  // Where they lay; another one under the same name is not what was planned.
  bool paged = false;
  std::weak_ptr<const memory::Pool> pool;
  std::weak_ptr<const memory::StoredSequence> stored;
  bool PoolIsGone() const { return paged && pool.expired(); }
  int64_t Bytes() const;
};

// One ApplyCompression call.
struct ApplyJob {
  struct Sequence {
    std::string sequence_id;
    uint64_t epoch = 0;
    int64_t num_tokens = 0;  // 0: as planned
    std::vector<uint32_t> appended_block_ids;
    std::vector<uint32_t> destination_block_ids;  // empty: as planned
  };
  std::string request_id;
  std::string peer;
  uint64_t request_hash = 0;
  std::string plan;  // id
  std::vector<Sequence> sequences;
  absl::Time deadline = absl::InfiniteFuture();
  std::shared_ptr<std::atomic<bool>> cancelled;  // never null
  int64_t payload_bytes = 0;
};

// A plan between its two calls.
struct HeldPlan {
  std::shared_ptr<const CompressJob> job;
  std::shared_ptr<const RegisteredModel> model;
  // Aligned with the job's sequences; null where there is nothing to apply.
  std::vector<std::shared_ptr<const ChosenPlan>> chosen;
  absl::Time expires;
  int64_t Bytes() const;
};

// The answer of PlanCompression.
struct Planned {
  std::string plan;  // id; empty: nothing to apply
  CompressResult result;
};

// Stands in line, and in the memory of answers, until the plan's own job is made.
std::shared_ptr<const CompressJob> ShellOf(ApplyJob apply);
// The job that moves what `plan` chose for the sequences of `apply`. A sequence that is not as
// planned has FailedPrecondition/PLAN_STALE for its edge_status. Errors of the whole:
// InvalidArgument (field path) for a sequence that the plan does not hold or that stands twice, and
// for appended blocks of a stored one.
absl::StatusOr<CompressJob> JobOf(const HeldPlan& plan, const ApplyJob& apply);

// What the source keeps of a plan. `keep` is copied, its rotation is not.
std::shared_ptr<ChosenPlan> Choose(const BoundSource& source, const pipeline::KeepPlan& keep);

// Whether what a plan was made of is what `source` is bound to. Errors:
// FailedPrecondition/PLAN_STALE.
absl::Status CheckUnchanged(const SequenceJob& job, const BoundSource& source,
                            SequenceMemory& remembered);

// Where the job named no blocks to copy to, they come with ApplyCompression: then only what will be
// free is known, and the answer is true.
bool LeaveTable(const BoundSource& source, pipeline::Placement placement, SequenceResult* result);

// The chosen sets over a source that got `appended` tokens per row since: all of them stay, behind
// the planned ones.
pipeline::KeepPlan WithAppended(const pipeline::KeepPlan& keep, const BoundSource& source,
                                pipeline::PositionMode positions, int64_t appended);

// FailedPrecondition/PLAN_STALE: what, got, want.
absl::Status Stale(const std::string& what);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_CHOSEN_PLAN_H_
