// What the sequences of one call must not share.
#ifndef KVERN_SERVER_ENGINE_COHORT_H_
#define KVERN_SERVER_ENGINE_COHORT_H_

#include "absl/status/status.h"
#include "server/engine/compress_job.h"
#include "server/memory/pool.h"

namespace kvern::engine {

// Errors: InvalidArgument (field path) for a sequence_id given twice, or a block that one sequence
// writes and another one reads or writes. Sequences of unknown pools are left to fail on their own.
absl::Status CheckCohort(const CompressJob& job, const memory::PoolTable& pools);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_COHORT_H_
