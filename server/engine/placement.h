// Where kept tokens go, by placement: which blocks, which slots, and the moves themselves.
#ifndef KVERN_SERVER_ENGINE_PLACEMENT_H_
#define KVERN_SERVER_ENGINE_PLACEMENT_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/base/reuse.h"
#include "server/engine/compress_job.h"
#include "server/engine/job_stop.h"
#include "server/engine/source.h"
#include "server/memory/store.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/resolve.h"

namespace kvern::engine {

// A decided and described sequence on its way to its place; all borrowed.
struct Placing {
  Backend& backend;
  const JobStop& stop;
  const SequenceJob& job;
  const std::string& model;  // id
  const BoundSource& source;
  const pipeline::ResolvedPolicy& policy;
  const pipeline::KeepPlan& plan;
  SequenceResult& result;
  std::shared_ptr<memory::StoredSequence> stored = nullptr;  // TO_STORE: written, not committed
  absl::Status status = absl::OkStatus();                    // why it did not arrive
};
// Sequences of one placement, dtype and model that move together; not empty.
using PlacingCohort = std::span<Placing* const>;

// Fills block_ids, freed_block_ids and next_slot of a paged result that holds `tokens` per longest
// row. Errors: FailedPrecondition/DESTINATION_TOO_SMALL naming the number of blocks needed.
absl::Status PlanTable(const BoundSource& source, pipeline::Placement placement, int64_t tokens,
                       SequenceResult* result);
// The table of a sequence that stays as it is.
void KeepTable(const BoundSource& source, SequenceResult* result);

// Each of these moves all sequences by one op per stage and waits until their bytes lie where they
// shall. What keeps one of them from moving is its own error; a fault or a stop on the way is the
// error of all that moved with it.
//
// Writes the kept tokens into the table that PlanTable made. On any error, a stop included, the old
// view is intact.
void CopyTo(PlacingCohort cohort);
// Packs forward in place. Errors: of a stop, before anything moved; DataLoss/SEQUENCE_POISONED
// after.
void Compact(PlacingCohort cohort);
// Fills k and v, or packed.
void Return(PlacingCohort cohort);
// Writes stored sequences that nobody sees before CommitToStore.
void WriteToStore(PlacingCohort cohort, memory::Store& store);

// Those without an error so far.
ScratchVector<Placing*> Unharmed(PlacingCohort cohort);
// Moves the kept tokens to `targets`, one per sequence, and waits for them.
absl::Status MoveTokens(PlacingCohort cohort, ScratchVector<pipeline::MoveTarget> targets);
// What packs the kept tokens, one per sequence.
ScratchVector<pipeline::PackTask> PackTasks(PlacingCohort cohort);
// Runs them and waits for them.
absl::StatusOr<std::vector<pipeline::PackedKv>> PackTokens(
    Backend& backend, std::span<const pipeline::PackTask> tasks);

// Publishes what WriteToStore wrote: under the id of a stored source in its stead, else under the
// job's sequence_id. Errors: AlreadyExists; Aborted/EPOCH_MISMATCH; ResourceExhausted. Nothing
// changes then.
absl::Status CommitToStore(const Placing& placing, memory::Store& store);
// InvalidArgument for an id that the store does not take.
absl::Status CheckStoreId(const SequenceJob& job);

// Leading slots that hold, in every row, the token and the rotation they held before.
int64_t UnmovedTokens(const pipeline::SequenceInput& input, const pipeline::KeepPlan& plan,
                      const pipeline::ResolvedPolicy& policy);

// DataLoss/SEQUENCE_POISONED after a fault with that code.
absl::Status Poisoned(absl::string_view code);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_PLACEMENT_H_
