// TO_STORE: the result becomes a stored sequence that nobody sees before it is whole.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/engine/failpoint.h"
#include "server/engine/placement.h"
#include "server/engine/report.h"

namespace kvern::engine {
namespace {

using memory::Store;
using memory::StoredInfo;
using memory::StoredSequence;

bool EqualCounts(const std::vector<int32_t>& counts) {
  return std::all_of(counts.begin(), counts.end(),
                     [&](int32_t count) { return count == counts.front(); });
}

StoredInfo InfoOf(const Placing& placing) {
  const BoundSource& source = placing.source;
  StoredInfo info;
  const auto* stored = std::get_if<StoredSource>(&placing.job.source);
  info.id = stored != nullptr ? stored->sequence : placing.job.sequence_id;
  info.model = placing.model;
  info.layer_indices = source.input.layer_indices;
  info.dtype = source.dtype;
  info.kv_heads = source.input.model->kv_heads;
  info.head_dim = source.input.model->head_dim;
  info.num_tokens = placing.plan.max_kept;
  info.logical_tokens = NextPosition(source, placing.policy, placing.plan);
  info.epoch = placing.job.epoch + 1;
  if (!EqualCounts(placing.plan.counts.counts)) info.lengths = placing.plan.counts.counts;
  SlotPositions positions = Shared({placing.plan.kept_positions, true, 0}, placing.plan.max_kept);
  info.positions = std::move(positions.values);
  info.per_head_positions = positions.per_head;
  info.k_codec = pipeline::ToText(placing.policy.codecs.k);
  info.v_codec = pipeline::ToText(placing.policy.codecs.v);
  return info;
}

// A paged sequence may renew what an earlier call stored of it: that one holds the epoch which that
// call answered, so it is this job's.
bool Renews(const Placing& placing, const StoredInfo& earlier) {
  return placing.source.stored == nullptr && earlier.epoch == placing.job.epoch &&
         earlier.model == placing.model;
}

// The mean of the first packing stays the sequence's (ruling 12); empty when there is none.
std::vector<Float16> FrozenMean(const Placing& placing, const Store& store,
                                const StoredInfo& info) {
  const auto earlier = store.Peek(info.id);
  if (!earlier.ok() || !Renews(placing, (*earlier)->Info())) return {};
  if ((*earlier)->Info().layer_indices != info.layer_indices) return {};
  return (*earlier)->Info().mean_key;
}

// A sequence on its way into blocks of the store.
struct Packing {
  std::vector<Float16> frozen_mean;
  pipeline::PackRoom room;  // of placing.stored
};

absl::StatusOr<Packing> StorePacked(Placing& placing, Store& store) {
  StoredInfo info = InfoOf(placing);
  Packing packing;
  packing.frozen_mean = FrozenMean(placing, store, info);
  int64_t block_bytes = 0;
  info.table = pipeline::PlanPackedTable(placing.source.input, placing.policy,
                                         placing.plan.counts.counts, &block_bytes);
  KVERN_ASSIGN_OR_RETURN(placing.stored, store.AllocatePacked(std::move(info), block_bytes));
  packing.room = {placing.stored->Info().table, placing.stored->Blocks()};
  return packing;
}

// The report reads what the blocks cost and lose.
void DescribeStored(Placing& placing, pipeline::PackedKv packed) {
  placing.stored->SetMeanKey(packed.mean_key);
  const StoredInfo& info = placing.stored->Info();
  placing.result.moved_bytes =
      pipeline::PackedView{placing.stored->Blocks(), info.table, info.mean_key, info.dtype}.Bytes();
  placing.result.packed = std::move(packed);
}

void WritePacked(PlacingCohort cohort, Store& store) {
  std::vector<Packing> packings;
  packings.reserve(cohort.size());
  for (Placing* placing : cohort) {
    auto packing = StorePacked(*placing, store);
    placing->status = packing.status();
    if (packing.ok()) packings.push_back(*std::move(packing));
  }
  const ScratchVector<Placing*> moving = Unharmed(cohort);
  if (moving.empty()) return;
  ScratchVector<pipeline::PackTask> tasks = PackTasks(moving);
  for (size_t at = 0; at < moving.size(); ++at) {
    tasks[at].frozen_mean = packings[at].frozen_mean;
    tasks[at].room = &packings[at].room;
  }
  auto packed = PackTokens(moving[0]->backend, tasks);
  for (size_t at = 0; at < moving.size(); ++at) {
    moving[at]->status = packed.status();
    if (packed.ok()) DescribeStored(*moving[at], std::move((*packed)[at]));
  }
}

absl::StatusOr<pipeline::MoveTarget> StoreDense(Placing& placing, Store& store) {
  KVERN_ASSIGN_OR_RETURN(placing.stored, store.AllocateDense(InfoOf(placing)));
  pipeline::MoveTarget target;
  for (int64_t layer = 0; layer < placing.source.input.Layers(); ++layer) {
    target.keys.push_back(placing.stored->Keys(layer));
    target.values.push_back(placing.stored->Values(layer));
  }
  return target;
}

void WriteDense(PlacingCohort cohort, Store& store) {
  ScratchVector<pipeline::MoveTarget> targets;
  for (Placing* placing : cohort) {
    auto target = StoreDense(*placing, store);
    placing->status = target.status();
    if (target.ok()) targets.push_back(*std::move(target));
  }
  const ScratchVector<Placing*> moving = Unharmed(cohort);
  if (moving.empty()) return;
  const absl::Status moved = MoveTokens(moving, std::move(targets));
  for (Placing* placing : moving) {
    placing->status = moved;
    placing->result.moved_bytes =
        static_cast<int64_t>(placing->plan.keep.tokens.size()) * placing->source.TokenBytes();
  }
}

}  // namespace

void WriteToStore(PlacingCohort cohort, Store& store) {
  if (cohort[0]->policy.codecs.Packs()) {
    WritePacked(cohort, store);
  } else {
    WriteDense(cohort, store);
  }
  for (Placing* placing : cohort) {
    if (!placing->status.ok()) placing->stored.reset();  // room for those that try again
  }
}

absl::Status CommitToStore(const Placing& placing, Store& store) {
  KVERN_RETURN_IF_ERROR(Hit(Failpoint::kBeforeStoreCommit));
  const std::string id = placing.stored->Info().id;
  if (placing.source.stored != nullptr) {
    KVERN_RETURN_IF_ERROR(store.Publish(placing.stored, Store::Commit::kReplace,
                                        placing.source.stored->Info().epoch));
  } else {
    const auto earlier = store.Peek(id);
    const bool renews = earlier.ok() && Renews(placing, (*earlier)->Info());
    KVERN_RETURN_IF_ERROR(store.Publish(
        placing.stored, renews ? Store::Commit::kReplace : Store::Commit::kNew, placing.job.epoch));
  }
  placing.result.stored_sequence = id;
  return absl::OkStatus();
}

absl::Status CheckStoreId(const SequenceJob& job) {
  if (std::holds_alternative<StoredSource>(job.source)) return absl::OkStatus();
  const std::string& id = job.sequence_id;
  const bool fits = std::all_of(id.begin(), id.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-';
  });
  if (fits && !id.empty() && id.size() <= 128) return absl::OkStatus();
  return WithField(absl::InvalidArgumentError("sequence_id: got one that cannot name a stored "
                                              "sequence, want 1..128 bytes of [A-Za-z0-9_.-]"),
                   "sequence_id");
}

}  // namespace kvern::engine
