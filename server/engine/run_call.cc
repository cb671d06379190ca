// A call stopped halfway answers for what it did; one stopped before that did nothing.
#include "server/engine/run_call.h"

#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "kernels/base/status_macros.h"
#include "server/engine/cohort.h"
#include "server/engine/run_cohort.h"

namespace kvern::engine {
namespace {

SequenceResult Skipped(const SequenceJob& job, const absl::Status& why) {
  SequenceResult result;
  result.sequence_id = job.sequence_id;
  result.outcome = Outcome::kSkipped;
  result.status = why;
  result.epoch = job.epoch;
  result.logical_tokens = job.logical_tokens;
  return result;
}

// True when the sequence is not as the caller left it.
bool Changed(const SequenceResult& result, const SequenceJob& job) {
  return result.epoch != job.epoch || absl::IsDataLoss(result.status);
}

// How many sequences from `first` on may run at the same time: as many as do not read from the
// store, or replace there, what an earlier one of them may write. One where an op serves only one
// anyway.
size_t TogetherFrom(const CallRun& call, size_t first) {
  if (!call.workplace.backend.Batches()) return 1;
  const std::vector<SequenceJob>& jobs = call.job.sequences;
  absl::flat_hash_set<std::string> names;
  for (size_t at = first; at < jobs.size(); ++at) {
    const auto* stored = std::get_if<StoredSource>(&jobs[at].source);
    const std::string& name = stored != nullptr ? stored->sequence : jobs[at].sequence_id;
    if (!names.insert(name).second) return at - first;
  }
  return jobs.size() - first;
}

}  // namespace

absl::StatusOr<CompressResult> RunCall(CallRun call) {
  EngineEvents* const events = call.workplace.events;
  absl::Status stopped = call.stop.Check();
  if (stopped.ok()) KVERN_RETURN_IF_ERROR(CheckCohort(call.job, call.workplace.pools));
  CompressResult answer;
  bool changed = false;
  const std::vector<SequenceJob>& jobs = call.job.sequences;
  while (answer.results.size() < jobs.size()) {
    const size_t next = answer.results.size();
    if (!stopped.ok()) {
      answer.results.push_back(Skipped(jobs[next], stopped));
      continue;
    }
    RunCohort(&call, next, TogetherFrom(call, next), &answer.results);
    for (size_t at = next; at < answer.results.size(); ++at) {
      const SequenceResult& result = answer.results[at];
      changed = changed || Changed(result, jobs[at]);
      if (result.outcome == Outcome::kSkipped && stopped.ok()) stopped = result.status;
    }
  }
  if (stopped.ok()) return answer;
  if (events != nullptr && absl::IsDeadlineExceeded(stopped)) {
    events->OnRejected(Rejection::kDeadline);
  }
  if (!changed) return stopped;
  return answer;
}

}  // namespace kvern::engine
