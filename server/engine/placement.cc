// Tables are planned before bytes move, so that a refusal costs nothing and a move decides nothing.
#include "server/engine/placement.h"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;

int64_t BlockTokens(const BoundSource& source) { return source.pool->spec.block_tokens; }

int64_t PrefixTokens(const Placing& placing) { return placing.source.input.readonly_prefix_tokens; }

pipeline::MoveTarget PoolTarget(const Placing& placing, const SequenceResult& result) {
  pipeline::MoveTarget target;
  const int64_t tokens = placing.plan.max_kept;
  for (int64_t layer = 0; layer < placing.source.input.Layers(); ++layer) {
    target.keys.push_back(placing.source.pool->Keys(layer, result.block_ids, tokens));
    target.values.push_back(placing.source.pool->Values(layer, result.block_ids, tokens));
  }
  target.first_slot = PrefixTokens(placing);
  return target;
}

ScratchVector<pipeline::MoveTarget> PoolTargets(PlacingCohort cohort) {
  ScratchVector<pipeline::MoveTarget> targets;
  for (const Placing* placing : cohort) targets.push_back(PoolTarget(*placing, placing->result));
  return targets;
}

// Room for the kept tokens in the result.
pipeline::MoveTarget DenseTarget(const Placing& placing) {
  const pipeline::SequenceInput& input = placing.source.input;
  SequenceResult& result = placing.result;
  const int64_t head_dim = input.model->head_dim;
  const DType dtype = placing.source.dtype;
  const int64_t layer_bytes = input.KvHeads() * placing.plan.max_kept * head_dim * SizeOf(dtype);
  result.k.resize(input.Layers() * layer_bytes);
  result.v.resize(input.Layers() * layer_bytes);
  pipeline::MoveTarget target;
  for (int64_t layer = 0; layer < input.Layers(); ++layer) {
    const auto view = [&](std::vector<std::byte>& bytes) {
      return DenseKvRef(dtype, bytes.data() + layer * layer_bytes, input.KvHeads(),
                        placing.plan.max_kept, head_dim);
    };
    target.keys.push_back(view(result.k));
    target.values.push_back(view(result.v));
  }
  return target;
}

void ReturnPacked(PlacingCohort cohort) {
  auto packed = PackTokens(cohort[0]->backend, PackTasks(cohort));
  for (size_t at = 0; at < cohort.size(); ++at) {
    Placing& placing = *cohort[at];
    placing.status = packed.status();
    if (!packed.ok()) continue;
    placing.result.packed = std::move((*packed)[at]);
    placing.result.moved_bytes = placing.result.packed->Bytes();
  }
}

int64_t MovedBytes(const Placing& placing) {
  const int64_t prefix = PrefixTokens(placing) * placing.source.Shape().Rows();
  const auto kept = static_cast<int64_t>(placing.plan.keep.tokens.size());
  return (kept - prefix) * placing.source.TokenBytes();
}

// The slot of the token after the result's last one. Its block may be one past the table: then it
// is the next destination block, or, when the caller gave none, no slot at all.
uint64_t NextSlot(const std::vector<uint32_t>& blocks, int64_t tokens, int64_t block_tokens) {
  const auto block = static_cast<size_t>(tokens / block_tokens);
  if (block >= blocks.size()) return std::numeric_limits<uint64_t>::max();
  return uint64_t{blocks[block]} * static_cast<uint64_t>(block_tokens) +
         static_cast<uint64_t>(tokens % block_tokens);
}

}  // namespace

absl::Status PlanTable(const BoundSource& source, Placement placement, int64_t tokens,
                       SequenceResult* result) {
  const int64_t block_tokens = BlockTokens(source);
  const std::vector<uint32_t>& before = source.paged->block_ids;
  const int64_t blocks = (tokens + block_tokens - 1) / block_tokens;
  if (placement == Placement::kCompact) {
    result->block_ids.assign(before.begin(), before.begin() + blocks);
    result->freed_block_ids.assign(before.begin() + blocks, before.end());
    result->next_slot = NextSlot(result->block_ids, tokens, block_tokens);
    return absl::OkStatus();
  }
  const std::vector<uint32_t>& destination = source.paged->destination_block_ids;
  const int64_t prefix = source.input.readonly_prefix_tokens / block_tokens;
  const int64_t fresh = std::max<int64_t>(0, blocks - prefix);
  if (static_cast<int64_t>(destination.size()) < fresh) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat("paged.destination_block_ids: got ",
                                                   destination.size(), " blocks, want ", fresh)),
        "DESTINATION_TOO_SMALL");
  }
  ScratchVector<uint32_t> reachable(before.begin(), before.begin() + prefix);
  reachable.insert(reachable.end(), destination.begin(), destination.end());
  result->next_slot = NextSlot(reachable, tokens, block_tokens);
  reachable.resize(prefix + fresh);
  result->block_ids = std::move(reachable);
  result->freed_block_ids.assign(before.begin() + prefix, before.end());
  return absl::OkStatus();
}

void KeepTable(const BoundSource& source, SequenceResult* result) {
  result->block_ids = source.paged->block_ids;
  result->freed_block_ids.clear();
  result->next_slot = NextSlot(result->block_ids, source.input.Tokens(), BlockTokens(source));
}

ScratchVector<Placing*> Unharmed(PlacingCohort cohort) {
  ScratchVector<Placing*> unharmed;
  for (Placing* placing : cohort) {
    if (placing->status.ok()) unharmed.push_back(placing);
  }
  return unharmed;
}

absl::Status MoveTokens(PlacingCohort cohort, ScratchVector<pipeline::MoveTarget> targets) {
  // A fault that allocation throws must not skip the words for what it left behind.
  try {
    ScratchVector<pipeline::MoveTask> tasks;
    for (size_t at = 0; at < cohort.size(); ++at) {
      const Placing& placing = *cohort[at];
      tasks.push_back(
          {&placing.source.input, &placing.policy, &placing.plan, std::move(targets[at])});
    }
    KVERN_RETURN_IF_ERROR(pipeline::Move(cohort[0]->backend, tasks));
    return cohort[0]->backend.Finish();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("move: got no memory for scratch, want more of it");
  }
}

ScratchVector<pipeline::PackTask> PackTasks(PlacingCohort cohort) {
  ScratchVector<pipeline::PackTask> tasks;
  for (const Placing* placing : cohort) {
    tasks.push_back(
        {.input = &placing->source.input, .policy = &placing->policy, .plan = &placing->plan});
  }
  return tasks;
}

absl::StatusOr<std::vector<pipeline::PackedKv>> PackTokens(
    Backend& backend, std::span<const pipeline::PackTask> tasks) {
  KVERN_ASSIGN_OR_RETURN(std::vector<pipeline::PackedKv> packed, pipeline::Pack(backend, tasks));
  KVERN_RETURN_IF_ERROR(backend.Finish());
  return packed;
}

void CopyTo(PlacingCohort cohort) {
  for (Placing* placing : cohort) placing->status = Hit(Failpoint::kBeforeCopyMove);
  const ScratchVector<Placing*> moving = Unharmed(cohort);
  if (moving.empty()) return;
  absl::Status moved;
  {
    const JobStop& job_stop = moving[0]->stop;
    const MoveStop stop(&job_stop, Failpoint::kWithinCopyMove, /*first_questions=*/2);
    const BoundStop bound(moving[0]->backend, &stop, &job_stop);
    moved = MoveTokens(moving, PoolTargets(moving));
  }
  for (Placing* placing : moving) {
    placing->status = moved;
    if (!moved.ok()) continue;
    placing->result.moved_bytes = MovedBytes(*placing);
    placing->status = Hit(Failpoint::kAfterCopyMove);
  }
}

void Compact(PlacingCohort cohort) {
  ScratchVector<pipeline::MoveTarget> targets = PoolTargets(cohort);
  for (pipeline::MoveTarget& target : targets) target.in_place = true;
  const JobStop& job_stop = cohort[0]->stop;
  const absl::Status wanted = job_stop.Check();
  for (Placing* placing : cohort) placing->status = wanted;
  if (!wanted.ok()) return;
  // From here on the only live copy is being rewritten: the move runs to its end, whoever left.
  const MoveStop stop(nullptr, Failpoint::kWithinCompactMove, /*first_questions=*/1);
  const BoundStop bound(cohort[0]->backend, IsSet(Failpoint::kWithinCompactMove) ? &stop : nullptr,
                        &job_stop);
  const absl::Status moved = MoveTokens(cohort, std::move(targets));
  for (Placing* placing : cohort) {
    if (moved.ok()) {
      placing->result.moved_bytes = MovedBytes(*placing);
    } else {
      placing->status = Poisoned(absl::StatusCodeToString(moved.code()));
    }
  }
}

void Return(PlacingCohort cohort) {
  if (cohort[0]->policy.codecs.Packs()) return ReturnPacked(cohort);
  ScratchVector<pipeline::MoveTarget> targets;
  for (Placing* placing : cohort) {
    try {
      targets.push_back(DenseTarget(*placing));
    } catch (const std::bad_alloc&) {
      placing->status =
          absl::ResourceExhaustedError("return: got no memory for k and v, want more of it");
    }
  }
  const ScratchVector<Placing*> moving = Unharmed(cohort);
  if (moving.empty()) return;
  const absl::Status moved = MoveTokens(moving, std::move(targets));
  for (Placing* placing : moving) {
    placing->result.moved_bytes = MovedBytes(*placing);
    placing->status = moved;
  }
}

absl::Status Poisoned(absl::string_view code) {
  return WithReason(absl::DataLossError(absl::StrCat("sequence: got a fault (", code,
                                                     ") while its tokens moved in place, want it "
                                                     "recomputed")),
                    "SEQUENCE_POISONED");
}

int64_t UnmovedTokens(const pipeline::SequenceInput& input, const pipeline::KeepPlan& plan,
                      const pipeline::ResolvedPolicy& policy) {
  const KeepList& keep = plan.keep;
  const bool renumber = policy.positions == pipeline::PositionMode::kRenumber;
  int64_t unmoved = plan.max_kept;
  for (int64_t layer = 0; layer < keep.layers; ++layer) {
    for (int64_t head = 0; head < keep.kv_heads; ++head) {
      const int32_t* row = keep.Row(layer, head);
      const int64_t count = std::min(unmoved, keep.Count(layer, head));
      int64_t slot = 0;
      while (slot < count && row[slot] == slot &&
             (!renumber || input.Position(layer, head, slot) == slot)) {
        ++slot;
      }
      unmoved = slot;
    }
  }
  return unmoved;
}

}  // namespace kvern::engine
