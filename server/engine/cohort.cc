// Sequences of one call run one after the other, so a block that one of them writes must be its
// own.
#include "server/engine/cohort.h"

#include <algorithm>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

using pipeline::Placement;

// Writers by pool and block.
using Writers = absl::flat_hash_map<std::string, absl::flat_hash_map<uint32_t, size_t>>;

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

absl::Status AddWriters(const CompressJob& job, size_t index, const memory::PoolTable& pools,
                        Writers* writers) {
  const SequenceJob& sequence = job.sequences[index];
  const auto* paged = std::get_if<PagedSource>(&sequence.source);
  if (paged == nullptr) return absl::OkStatus();
  const auto pool = pools.Find(paged->pool);
  if (!pool.ok()) return absl::OkStatus();
  const Placement placement = PlacementOf(job, sequence);
  std::span<const uint32_t> blocks;
  const char* name = "block_ids";
  if (placement == Placement::kCompact) blocks = WritableBlocks(sequence, **pool);
  if (placement == Placement::kCopyTo) {
    blocks = paged->destination_block_ids;
    name = "destination_block_ids";
  }
  auto& of_pool = (*writers)[paged->pool];
  for (const uint32_t block : blocks) {
    const auto [at, added] = of_pool.emplace(block, index);
    if (!added && at->second != index) return Shared(index, name, block);
  }
  return absl::OkStatus();
}

absl::Status CheckReader(const CompressJob& job, size_t index, const Writers& writers) {
  const auto* paged = std::get_if<PagedSource>(&job.sequences[index].source);
  if (paged == nullptr) return absl::OkStatus();
  const auto of_pool = writers.find(paged->pool);
  if (of_pool == writers.end()) return absl::OkStatus();
  for (const uint32_t block : paged->block_ids) {
    const auto writer = of_pool->second.find(block);
    if (writer != of_pool->second.end() && writer->second != index) {
      return Shared(index, "block_ids", block);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckCohort(const CompressJob& job, const memory::PoolTable& pools) {
  absl::flat_hash_set<std::string> ids;
  Writers writers;
  for (size_t index = 0; index < job.sequences.size(); ++index) {
    if (!ids.insert(job.sequences[index].sequence_id).second) {
      const std::string field = absl::StrCat("sequences[", index, "].sequence_id");
      return WithField(absl::InvalidArgumentError(absl::StrCat(
                           field, ": got one that an earlier sequence has, want unique ones")),
                       field);
    }
    KVERN_RETURN_IF_ERROR(AddWriters(job, index, pools, &writers));
  }
  for (size_t index = 0; index < job.sequences.size(); ++index) {
    KVERN_RETURN_IF_ERROR(CheckReader(job, index, writers));
  }
  return absl::OkStatus();
}

}  // namespace kvern::engine
