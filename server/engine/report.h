// Fills results: facts of the source, of the policy that ran, of what was kept and of what it cost.
#ifndef KVERN_SERVER_ENGINE_REPORT_H_
#define KVERN_SERVER_ENGINE_REPORT_H_

#include <vector>

#include "kernels/base/reuse.h"
#include "server/engine/compress_job.h"
#include "server/engine/engine_events.h"
#include "server/engine/policy_cache.h"
#include "server/engine/source.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/resolve.h"

namespace kvern::engine {

void DescribeSource(const BoundSource& source, SequenceResult* result);
void DescribePolicy(const KnownPolicy& known, SequenceResult* result);
// A remark where scorers work with observed queries that the policy did not name.
void DescribeObserved(const pipeline::Calibrations& calibrations,
                      const pipeline::ResolvedPolicy& policy, SequenceResult* result);
// Where positions continue after the plan: renumbered ones at the kept count.
int64_t NextPosition(const BoundSource& source, const pipeline::ResolvedPolicy& policy,
                     const pipeline::KeepPlan& plan);
// Counts, planned bytes, next position, kept mass and warnings.
void DescribePlan(const BoundSource& source, const pipeline::ResolvedPolicy& policy,
                  const pipeline::KeepPlan& plan, SequenceResult* result);
// Measured bytes and errors of result->packed, where there is one.
void DescribePacked(SequenceResult* result);
// What stays true of a result whose sequence failed: source, policy, times.
SequenceResult Refused(const SequenceResult& result);

// Kept indices [layers, kv_heads, max_kept], -1 fills.
ScratchVector<int32_t> PaddedKeep(const pipeline::KeepPlan& plan);

// Time of each stage that ran, under its registered name.
void NotifyStages(const SequenceResult& result, EngineEvents* events);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_REPORT_H_
