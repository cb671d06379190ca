// Where kept tokens go, by placement: which blocks, which slots, and the moves themselves.
#ifndef KVERN_SERVER_ENGINE_PLACEMENT_H_
#define KVERN_SERVER_ENGINE_PLACEMENT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/backend.h"
#include "server/engine/compress_job.h"
#include "server/engine/job_stop.h"
#include "server/engine/source.h"
#include "server/memory/store.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/resolve.h"

namespace kvern::engine {

// A decided sequence on its way to its place; all borrowed.
struct Placing {
  Backend& backend;
  const JobStop& stop;
  const SequenceJob& job;
  const std::string& model;  // id
  const BoundSource& source;
  const pipeline::ResolvedPolicy& policy;
  const pipeline::KeepPlan& plan;
};

// Fills block_ids, freed_block_ids and next_slot of a paged result that holds `tokens` per longest
// row. Errors: FailedPrecondition/DESTINATION_TOO_SMALL naming the number of blocks needed.
absl::Status PlanTable(const BoundSource& source, pipeline::Placement placement, int64_t tokens,
                       SequenceResult* result);
// The table of a sequence that stays as it is.
void KeepTable(const BoundSource& source, SequenceResult* result);

// Writes the kept tokens into the table that PlanTable made. On any error, a stop included, the old
// view is intact.
absl::Status CopyTo(const Placing& placing, SequenceResult* result);
// Packs forward in place. Errors: of a stop, before anything moved; DataLoss/SEQUENCE_POISONED
// after.
absl::Status Compact(const Placing& placing, SequenceResult* result);
// Fills k and v, or packed.
absl::Status Return(const Placing& placing, SequenceResult* result);
// Writes a stored sequence and publishes it: under the id of a stored source in its stead, else
// under the job's sequence_id. Errors: InvalidArgument for an id that the store does not take;
// AlreadyExists; Aborted/EPOCH_MISMATCH; ResourceExhausted. Nothing changes then.
absl::Status ToStore(const Placing& placing, memory::Store& store, SequenceResult* result);
// Errors of ToStore that can be told before any work.
absl::Status CheckStoreId(const SequenceJob& job);

// Leading slots that hold, in every row, the token and the rotation they held before.
int64_t UnmovedTokens(const pipeline::SequenceInput& input, const pipeline::KeepPlan& plan,
                      const pipeline::ResolvedPolicy& policy);

// DataLoss/SEQUENCE_POISONED after a fault with that code.
absl::Status Poisoned(absl::string_view code);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_PLACEMENT_H_
