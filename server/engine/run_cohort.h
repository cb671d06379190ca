// Sequences of one call that run at the same time: those that resolve to the same stages by one op
// per stage.
#ifndef KVERN_SERVER_ENGINE_RUN_COHORT_H_
#define KVERN_SERVER_ENGINE_RUN_COHORT_H_

#include <cstddef>

#include "kernels/base/reuse.h"
#include "server/engine/call_run.h"
#include "server/engine/compress_job.h"

namespace kvern::engine {

// Runs `count` sequences of the call from `first` on and adds their results in their order. Never
// fails: the outcomes say what happened. A sequence that cannot be bound, decided, planned or
// published fails alone. A fault of an op that moves fails all that move with it, and only those:
// their old views are intact, or, where they moved in place, they are poisoned. A stop makes
// SKIPPED of whatever did not move yet. The backend's StopCheck is bound meanwhile.
void RunCohort(CallRun* call, size_t first, size_t count, ScratchVector<SequenceResult>* results);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_RUN_COHORT_H_
