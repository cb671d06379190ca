// Sequences of one call run one after the other, so a block that one of them writes must be its
// own.
#include "server/engine/cohort.h"

#include <algorithm>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;

// A block that a sequence writes; the pool's id is the job's.
struct Writer {
  absl::string_view pool;
  uint32_t block;
  size_t index;
  bool Before(const Writer& other) const {
    return std::tie(pool, block, index) < std::tie(other.pool, other.block, other.index);
  }
};
using Writers = ScratchVector<Writer>;

Placement PlacementOf(const CompressJob& job, const SequenceJob& sequence) {
  const Placement placement =
      sequence.policy.has_value() ? sequence.policy->placement : job.policy.placement;
  return placement == Placement::kDefault ? Placement::kCopyTo : placement;
}

absl::Status Shared(size_t index, const char* name, uint32_t block) {
  const std::string field = absl::StrCat("sequences[", index, "].paged.", name);
  return WithField(
      absl::InvalidArgumentError(absl::StrCat(
          field, ": got block ", block,
          ", which another sequence of the call reads or writes, want blocks of its own")),
      field);
}

// Blocks of the table that this sequence may write: those behind the read-only prefix.
std::span<const uint32_t> WritableBlocks(const SequenceJob& sequence, const memory::Pool& pool) {
  const std::vector<uint32_t>& blocks = std::get<PagedSource>(sequence.source).block_ids;
  const int64_t prefix = std::max<int64_t>(0, sequence.readonly_prefix_tokens);
  const auto shared = static_cast<size_t>(prefix / pool.spec.block_tokens);
  return std::span(blocks).subspan(std::min(shared, blocks.size()));
}

void AddWriters(const CompressJob& job, size_t index, const memory::PoolTable& pools,
                Writers* writers) {
  const SequenceJob& sequence = job.sequences[index];
  const auto* paged = std::get_if<PagedSource>(&sequence.source);
  if (paged == nullptr) return;
  const auto pool = pools.Find(paged->pool);
  if (!pool.ok()) return;
  const Placement placement = PlacementOf(job, sequence);
  std::span<const uint32_t> blocks;
  if (placement == Placement::kCompact) blocks = WritableBlocks(sequence, **pool);
  if (placement == Placement::kCopyTo) blocks = paged->destination_block_ids;
  for (const uint32_t block : blocks) writers->push_back({paged->pool, block, index});
}

// The field that names the blocks which the sequence writes.
const char* WrittenField(const CompressJob& job, size_t index) {
  return PlacementOf(job, job.sequences[index]) == Placement::kCompact ? "block_ids"
                                                                       : "destination_block_ids";
}

absl::Status CheckWriters(const CompressJob& job, const Writers& sorted) {
  for (size_t at = 1; at < sorted.size(); ++at) {
    const Writer& one = sorted[at - 1];
    const Writer& next = sorted[at];
    if (one.pool != next.pool || one.block != next.block || one.index == next.index) continue;
    return Shared(next.index, WrittenField(job, next.index), next.block);
  }
  return absl::OkStatus();
}

absl::Status CheckReader(const CompressJob& job, size_t index, const Writers& writers) {
  const auto* paged = std::get_if<PagedSource>(&job.sequences[index].source);
  if (paged == nullptr) return absl::OkStatus();
  for (const uint32_t block : paged->block_ids) {
    const Writer wanted = {paged->pool, block, 0};
    const auto writer =
        std::lower_bound(writers.begin(), writers.end(), wanted,
                         [](const Writer& one, const Writer& other) { return one.Before(other); });
    if (writer == writers.end() || writer->pool != wanted.pool || writer->block != block) continue;
    if (writer->index != index) return Shared(index, "block_ids", block);
  }
  return absl::OkStatus();
}

absl::Status CheckIds(const CompressJob& job) {
  ScratchVector<std::pair<absl::string_view, size_t>> ids;
  for (const SequenceJob& sequence : job.sequences)
    ids.push_back({sequence.sequence_id, ids.size()});
  std::sort(ids.begin(), ids.end());
  for (size_t at = 1; at < ids.size(); ++at) {
    if (ids[at - 1].first != ids[at].first) continue;
    const std::string field = absl::StrCat("sequences[", ids[at].second, "].sequence_id");
    return WithField(absl::InvalidArgumentError(absl::StrCat(
                         field, ": got one that an earlier sequence has, want unique ones")),
                     field);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckCohort(const CompressJob& job, const memory::PoolTable& pools) {
  if (job.sequences.size() < 2) return absl::OkStatus();  // with whom?
  KVERN_RETURN_IF_ERROR(CheckIds(job));
  Writers writers;
  for (size_t index = 0; index < job.sequences.size(); ++index) {
    AddWriters(job, index, pools, &writers);
  }
  std::sort(writers.begin(), writers.end(),
            [](const Writer& one, const Writer& other) { return one.Before(other); });
  KVERN_RETURN_IF_ERROR(CheckWriters(job, writers));
  for (size_t index = 0; index < job.sequences.size(); ++index) {
    KVERN_RETURN_IF_ERROR(CheckReader(job, index, writers));
  }
  return absl::OkStatus();
}

}  // namespace kvern::engine
