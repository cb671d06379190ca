// A plan is applied by the path of CompressCache, with its choice in place of stages: what the two
// do differs in nothing else.
#include "server/engine/chosen_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

template <class T>
int64_t BytesOf(const std::vector<T>& values) {
  return static_cast<int64_t>(values.capacity() * sizeof(T));
}

absl::Status Bad(size_t index, const char* field, const std::string& what) {
  const std::string path = absl::StrCat("sequences[", index, "].", field);
  return WithField(absl::InvalidArgumentError(absl::StrCat(path, ": ", what)), path);
}

int64_t BytesOf(const SequenceJob& job) {
  int64_t bytes = static_cast<int64_t>(sizeof(SequenceJob) + job.sequence_id.size());
  bytes += BytesOf(job.positions) + BytesOf(job.side.q_window) + BytesOf(job.side.attention_mass) +
           BytesOf(job.side.external_scores) + BytesOf(job.protected_ranges);
  if (const auto* paged = std::get_if<PagedSource>(&job.source)) {
    bytes +=
        BytesOf(paged->block_ids) + BytesOf(paged->destination_block_ids) + BytesOf(paged->lengths);
  }
  return bytes;
}

absl::Status Append(const ApplyJob::Sequence& now, size_t index, SequenceJob* job) {
  auto* paged = std::get_if<PagedSource>(&job->source);
  if (paged == nullptr) {
    if (!now.appended_block_ids.empty() || !now.destination_block_ids.empty()) {
      return Bad(index, "appended_block_ids", "got blocks for a stored sequence, want none");
    }
    return absl::OkStatus();
  }
  if (!now.destination_block_ids.empty()) paged->destination_block_ids = now.destination_block_ids;
  paged->block_ids.insert(paged->block_ids.end(), now.appended_block_ids.begin(),
                          now.appended_block_ids.end());
  if (now.num_tokens <= paged->num_tokens) return absl::OkStatus();
  const int64_t appended = now.num_tokens - paged->num_tokens;
  if (now.num_tokens > std::numeric_limits<int32_t>::max()) {
    return Bad(index, "num_tokens", absl::StrCat("got ", now.num_tokens, ", want below 2^31"));
  }
  for (int32_t& length : paged->lengths) length += static_cast<int32_t>(appended);
  paged->num_tokens = now.num_tokens;
  return absl::OkStatus();
}

// Whether the caller says that the sequence is as it was planned, or longer.
absl::Status CheckSame(const ApplyJob::Sequence& now, const SequenceJob& planned,
                       const ChosenPlan* chosen) {
  if (chosen == nullptr)
    return Stale("got a sequence that could not be planned, want a plan of it");
  if (now.epoch != planned.epoch) {
    return Stale(absl::StrCat("epoch got ", now.epoch, ", want the planned ", planned.epoch));
  }
  const int64_t tokens = chosen->slots->tokens;
  const bool paged = std::holds_alternative<PagedSource>(planned.source);
  if (now.num_tokens != 0 && (now.num_tokens < tokens || (now.num_tokens > tokens && !paged))) {
    return Stale(absl::StrCat("num_tokens got ", now.num_tokens, ", want the planned ", tokens,
                              paged ? " or more" : ""));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Stale(const std::string& what) {
  return WithReason(absl::FailedPreconditionError(absl::StrCat("plan: ", what)), "PLAN_STALE");
}

int64_t ChosenPlan::Bytes() const {
  return static_cast<int64_t>(sizeof(ChosenPlan)) + BytesOf(keep.counts.counts) +
         BytesOf(keep.counts.recent) + BytesOf(keep.keep.offsets) + BytesOf(keep.keep.tokens) +
         BytesOf(keep.scores) + BytesOf(keep.kept_positions) + BytesOf(slots->positions);
}

int64_t HeldPlan::Bytes() const {
  int64_t bytes = static_cast<int64_t>(sizeof(HeldPlan) + sizeof(CompressJob));
  for (const SequenceJob& sequence : job->sequences) bytes += BytesOf(sequence);
  for (const auto& plan : chosen) bytes += plan == nullptr ? 0 : plan->Bytes();
  return bytes;
}

std::shared_ptr<const CompressJob> ShellOf(ApplyJob apply) {
  auto shell = std::make_shared<CompressJob>();
  shell->request_id = apply.request_id;
  shell->peer = apply.peer;
  shell->request_hash = apply.request_hash;
  shell->deadline = apply.deadline;
  shell->cancelled = apply.cancelled;
  shell->apply = std::make_shared<const ApplyJob>(std::move(apply));
  return shell;
}

absl::StatusOr<CompressJob> JobOf(const HeldPlan& plan, const ApplyJob& apply) {
  absl::flat_hash_map<std::string, size_t> planned;
  for (size_t at = 0; at < plan.job->sequences.size(); ++at) {
    planned[plan.job->sequences[at].sequence_id] = at;
  }
  CompressJob job;
  job.request_id = apply.request_id;
  job.peer = apply.peer;
  job.model = plan.job->model;
  job.policy = plan.job->policy;
  job.fields = plan.job->fields;
  job.deadline = apply.deadline;
  job.cancelled = apply.cancelled;
  job.payload_bytes = apply.payload_bytes;
  absl::flat_hash_set<size_t> taken;
  for (size_t index = 0; index < apply.sequences.size(); ++index) {
    const ApplyJob::Sequence& now = apply.sequences[index];
    const auto found = planned.find(now.sequence_id);
    if (found == planned.end()) {
      return Bad(index, "sequence_id", "got one that the plan does not hold, want one of its own");
    }
    if (!taken.insert(found->second).second) {
      return Bad(index, "sequence_id", "got the id of an earlier sequence, want each once");
    }
    SequenceJob& sequence = job.sequences.emplace_back(plan.job->sequences[found->second]);
    sequence.chosen = plan.chosen[found->second];
    sequence.edge_status =
        CheckSame(now, plan.job->sequences[found->second], sequence.chosen.get());
    if (!sequence.edge_status.ok()) continue;
    sequence.positions.clear();  // those of the plan count
    sequence.logical_tokens = 0;
    KVERN_RETURN_IF_ERROR(Append(now, index, &sequence));
  }
  return job;
}

std::shared_ptr<ChosenPlan> Choose(const BoundSource& source, const pipeline::KeepPlan& keep) {
  auto chosen = std::make_shared<ChosenPlan>();
  chosen->keep = keep;
  chosen->keep.rotation.reset();
  GiveUpSpace(&chosen->keep.keep.offsets);
  GiveUpSpace(&chosen->keep.keep.tokens);
  GiveUpSpace(&chosen->keep.scores);
  GiveUpSpace(&chosen->keep.kept_positions);
  chosen->available = AvailabilityOf(source);
  chosen->calibrations = source.calibrations;
  chosen->calibrations.centres = nullptr;  // no limit would count what a plan held of them
  chosen->calibrations.moments = nullptr;
  auto slots = std::make_shared<RememberedSlots>(
      RememberedSlots{source.input.positions, source.input.per_head_positions,
                      source.input.Tokens(), source.input.logical_tokens});
  GiveUpSpace(&slots->positions);
  chosen->slots = std::move(slots);
  chosen->paged = source.paged != nullptr;
  chosen->pool = source.pool;
  chosen->stored = source.stored;
  return chosen;
}

absl::Status CheckUnchanged(const SequenceJob& job, const BoundSource& source,
                            SequenceMemory& remembered) {
  const ChosenPlan& chosen = *job.chosen;
  const SlotShape shape = source.Shape();
  const bool same = chosen.paged ? source.paged != nullptr && chosen.pool.lock() == source.pool
                                 : chosen.stored.lock() == source.stored;
  if (!same) return Stale("got another pool or stored sequence of the name, want the planned one");
  if (source.paged != nullptr) {
    const absl::Status looked = remembered.Look(job.sequence_id, job.epoch).status();
    if (!looked.ok()) return Stale(std::string(looked.message()));
  }
  const KeepList& keep = chosen.keep.keep;
  if (keep.layers == shape.layers && keep.kv_heads == shape.kv_heads &&
      chosen.slots->tokens <= shape.tokens) {
    return absl::OkStatus();
  }
  return Stale(absl::StrCat("got [", shape.layers, ", ", shape.kv_heads, ", ", shape.tokens,
                            "] layers, kv_heads and tokens, want the planned [", keep.layers, ", ",
                            keep.kv_heads, ", ", chosen.slots->tokens, "]"));
}

bool LeaveTable(const BoundSource& source, pipeline::Placement placement, SequenceResult* result) {
  if (placement != pipeline::Placement::kCopyTo || !source.paged->destination_block_ids.empty()) {
    return false;
  }
  const int64_t prefix = source.input.readonly_prefix_tokens / source.pool->spec.block_tokens;
  const std::vector<uint32_t>& before = source.paged->block_ids;
  result->block_ids.clear();
  result->freed_block_ids.assign(before.begin() + prefix, before.end());
  result->next_slot = std::numeric_limits<uint64_t>::max();
  return true;
}

pipeline::KeepPlan WithAppended(const pipeline::KeepPlan& keep, const BoundSource& source,
                                pipeline::PositionMode positions, int64_t appended) {
  if (appended == 0) return keep;
  const SlotShape shape = source.Shape();
  const int64_t tokens_before = shape.tokens - appended;
  pipeline::KeepPlan longer = keep;
  for (int32_t& count : longer.counts.counts) count += static_cast<int32_t>(appended);
  for (int32_t& recent : longer.counts.recent) recent += static_cast<int32_t>(appended);
  longer.keep = KeepList::WithCounts(DenseView(
      static_cast<const int32_t*>(longer.counts.counts.data()), shape.layers, shape.kv_heads));
  longer.max_kept += appended;
  longer.kept_positions.assign(shape.Rows() * longer.max_kept, -1);
  if (!keep.scores.empty()) {
    longer.scores.assign(shape.Rows() * shape.tokens, std::numeric_limits<float>::quiet_NaN());
  }
  for (int64_t row = 0; row < shape.Rows(); ++row) {
    const int64_t layer = row / shape.kv_heads, head = row % shape.kv_heads;
    const int64_t kept = keep.keep.Count(layer, head);
    int32_t* tokens = longer.keep.Row(layer, head);
    std::copy_n(keep.keep.Row(layer, head), kept, tokens);
    int32_t* slots = longer.kept_positions.data() + row * longer.max_kept;
    std::copy_n(keep.kept_positions.data() + row * keep.max_kept, kept, slots);
    for (int64_t slot = kept; slot < kept + appended; ++slot) {
      tokens[slot] = static_cast<int32_t>(shape.Length(row) - appended + slot - kept);
      slots[slot] = positions == pipeline::PositionMode::kRenumber
                        ? static_cast<int32_t>(slot)
                        : source.input.Position(layer, head, tokens[slot]);
    }
    if (keep.scores.empty()) continue;
    std::copy_n(keep.scores.data() + row * tokens_before, tokens_before,
                longer.scores.data() + row * shape.tokens);
  }
  return longer;
}

}  // namespace kvern::engine
