// A call stopped halfway answers for what it did; one stopped before that did nothing.
#include "server/engine/run_call.h"

#include <utility>

#include "kernels/base/status_macros.h"
#include "server/engine/cohort.h"

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

}  // namespace

absl::StatusOr<CompressResult> RunCall(CallRun call) {
  EngineEvents* const events = call.workplace.events;
  absl::Status stopped = call.stop.Check();
  if (stopped.ok()) KVERN_RETURN_IF_ERROR(CheckCohort(call.job, call.workplace.pools));
  CompressResult answer;
  bool changed = false;
  for (size_t index = 0; index < call.job.sequences.size(); ++index) {
    const SequenceJob& job = call.job.sequences[index];
    if (!stopped.ok()) {
      answer.results.push_back(Skipped(job, stopped));
      continue;
    }
    answer.results.push_back(RunSequence(&call, index));
    const SequenceResult& result = answer.results.back();
    changed = changed || Changed(result, job);
    if (result.outcome == Outcome::kSkipped) stopped = result.status;
  }
  if (stopped.ok()) return answer;
  if (events != nullptr && absl::IsDeadlineExceeded(stopped)) {
    events->OnRejected(Rejection::kDeadline);
  }
  if (!changed) return stopped;
  return answer;
}

}  // namespace kvern::engine
