// One admitted call: its sequences in order, until one of them is the last that is still wanted.
#ifndef KVERN_SERVER_ENGINE_RUN_CALL_H_
#define KVERN_SERVER_ENGINE_RUN_CALL_H_

#include "absl/status/statusor.h"
#include "server/engine/call_run.h"
#include "server/engine/compress_job.h"

namespace kvern::engine {

// Errors of the whole call: of CheckCohort; of the stop, when it fired before anything changed.
absl::StatusOr<CompressResult> RunCall(CallRun call);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_RUN_CALL_H_
