// Pools are immutable once registered: whoever holds the pointer keeps the memory mapped.
#include "server/memory/pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"

namespace kvern::memory {
namespace {

constexpr size_t kMaxIdBytes = 64;

KvRef ViewOf(const Pool& pool, const PoolView& view, const std::vector<uint32_t>& block_ids) {
  KvRef ref;
  ref.dtype = pool.spec.dtype;
  ref.kv_heads = pool.spec.kv_heads;
  ref.head_dim = pool.spec.head_dim;
  ref.block_tokens = pool.spec.block_tokens;
  ref.base = pool.regions[view.region]->Data() + view.base_offset;
  ref.strides = view.strides;
  ref.block_ids = block_ids.data();
  return ref;
}

bool IsIdByte(char byte) {
  return absl::ascii_isalnum(static_cast<unsigned char>(byte)) || byte == '_' || byte == '.' ||
         byte == '-';
}

absl::Status ValidateId(const std::string& id) {
  if (id.size() <= kMaxIdBytes && std::all_of(id.begin(), id.end(), IsIdByte)) {
    return absl::OkStatus();
  }
  return WithField(absl::InvalidArgumentError(absl::StrCat("pool.name: got an id of ", id.size(),
                                                           " bytes, want 1 to ", kMaxIdBytes,
                                                           " letters, digits, '_', '.' or '-'")),
                   "pool.name");
}

absl::Status Expired(const std::string& id) {
  return WithReason(
      absl::NotFoundError(absl::StrCat("pool: got ", id,
                                       ", which was never registered, ended, or lost its broker "
                                       "connection; want a registered pool")),
      "POOL_EXPIRED");
}

// Finds the regions and connections behind the attachments that `pool` names.
absl::Status LeaseRegions(const AttachmentTable& attachments, Pool* pool) {
  std::vector<AttachmentId> sorted = pool->spec.regions;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    return WithField(
        absl::InvalidArgumentError("pool.regions: got one attachment twice, want each once"),
        "pool.regions");
  }
  for (const AttachmentId& id : pool->spec.regions) {
    KVERN_ASSIGN_OR_RETURN(std::shared_ptr<Region> region, attachments.Find(id));
    if (!pool->regions.empty() && region->Owner() != pool->regions.front()->Owner()) {
      return WithField(
          absl::InvalidArgumentError("pool.regions: got regions of two users, want all of one"),
          "pool.regions");
    }
    pool->mapped_bytes += region->SizeBytes();
    pool->regions.push_back(std::move(region));
    pool->connections.push_back(attachments.ConnectionOf(id));
  }
  std::sort(pool->connections.begin(), pool->connections.end());
  pool->connections.erase(std::unique(pool->connections.begin(), pool->connections.end()),
                          pool->connections.end());
  return absl::OkStatus();
}

absl::Status StillAttached(const AttachmentTable& attachments, const Pool& pool) {
  for (const AttachmentId& id : pool.spec.regions) {
    KVERN_RETURN_IF_ERROR(attachments.Find(id).status());
  }
  return absl::OkStatus();
}

}  // namespace

KvRef Pool::Keys(int64_t layer_slot, const std::vector<uint32_t>& block_ids, int64_t tokens) const {
  KVERN_CHECK(layer_slot >= 0 && layer_slot < static_cast<int64_t>(spec.layers.size()));
  KVERN_CHECK(tokens <= static_cast<int64_t>(block_ids.size()) * spec.block_tokens);
  KvRef ref = ViewOf(*this, spec.layers[layer_slot].k, block_ids);
  ref.tokens = tokens;
  return ref;
}

KvRef Pool::Values(int64_t layer_slot, const std::vector<uint32_t>& block_ids,
                   int64_t tokens) const {
  KVERN_CHECK(layer_slot >= 0 && layer_slot < static_cast<int64_t>(spec.layers.size()));
  KVERN_CHECK(tokens <= static_cast<int64_t>(block_ids.size()) * spec.block_tokens);
  KvRef ref = ViewOf(*this, spec.layers[layer_slot].v, block_ids);
  ref.tokens = tokens;
  return ref;
}

PoolTable::PoolTable(const Limits& limits, AttachmentTable* attachments)
    : limits_(limits), attachments_(attachments) {}

absl::StatusOr<std::shared_ptr<const Pool>> PoolTable::Register(PoolSpec spec) {
  KVERN_RETURN_IF_ERROR(ValidateId(spec.id));
  if (static_cast<int64_t>(spec.regions.size()) > limits_.regions_per_pool) {
    return WithField(
        absl::InvalidArgumentError(absl::StrCat("pool.regions: got ", spec.regions.size(),
                                                " regions, want 1 to ", limits_.regions_per_pool)),
        "pool.regions");
  }
  auto pool = std::make_shared<Pool>();
  pool->spec = std::move(spec);
  KVERN_RETURN_IF_ERROR(LeaseRegions(*attachments_, pool.get()));
  KVERN_RETURN_IF_ERROR(ValidatePool(pool->spec, pool->regions, limits_));

  const uid_t owner = pool->regions.front()->Owner();
  const absl::MutexLock lock(&mutex_);
  std::string& id = pool->spec.id;
  if (pools_.contains(id)) {
    return absl::AlreadyExistsError(
        absl::StrCat("pool.name: got ", id, ", which is registered; want a new id or none"));
  }
  const int64_t owned = std::count_if(pools_.begin(), pools_.end(), [&](const auto& entry) {
    return entry.second->regions.front()->Owner() == owner;
  });
  if (owned >= limits_.pools_per_peer) {
    return absl::ResourceExhaustedError(
        absl::StrCat("pools: this user has ", owned, ", want at most ", limits_.pools_per_peer));
  }
  // A connection that ended meanwhile told us before the pool was here to expire. Asked under our
  // lock: one that ends later finds the pool.
  KVERN_RETURN_IF_ERROR(StillAttached(*attachments_, *pool));
  while (id.empty() || pools_.contains(id)) id = absl::StrCat("pool-", next_id_++);
  pools_.emplace(id, pool);
  return std::shared_ptr<const Pool>(std::move(pool));
}

absl::StatusOr<std::shared_ptr<const Pool>> PoolTable::Find(const std::string& id) const {
  const absl::MutexLock lock(&mutex_);
  const auto entry = pools_.find(id);
  if (entry == pools_.end()) return Expired(id);
  return entry->second;
}

std::vector<std::shared_ptr<const Pool>> PoolTable::List() const {
  const absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<const Pool>> pools;
  pools.reserve(pools_.size());
  for (const auto& [id, pool] : pools_) pools.push_back(pool);
  return pools;
}

bool PoolTable::Unregister(const std::string& id) {
  std::shared_ptr<const Pool> ended;  // unmaps, if it is the last holder, outside the lock
  const absl::MutexLock lock(&mutex_);
  const auto entry = pools_.find(id);
  if (entry == pools_.end()) return false;
  ended = std::move(entry->second);
  pools_.erase(entry);
  return true;
}

int64_t PoolTable::ExpireConnection(int64_t connection) {
  std::vector<std::shared_ptr<const Pool>> ended;
  const absl::MutexLock lock(&mutex_);
  for (auto entry = pools_.begin(); entry != pools_.end();) {
    const std::vector<int64_t>& connections = entry->second->connections;
    if (std::find(connections.begin(), connections.end(), connection) == connections.end()) {
      ++entry;
      continue;
    }
    ended.push_back(std::move(entry->second));
    entry = pools_.erase(entry);
  }
  return static_cast<int64_t>(ended.size());
}

}  // namespace kvern::memory
