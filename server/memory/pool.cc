// Pools are immutable once registered: whoever holds the pointer keeps the memory mapped.
#include "server/memory/pool.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/memory/pool_regions.h"

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
                                       ", which was never registered, ended, lost its broker "
                                       "connection or its lease; want a registered pool")),
      "POOL_EXPIRED");
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

PoolTable::PoolTable(const Limits& limits, AttachmentTable* attachments, ImportDevice import)
    : limits_(limits), attachments_(attachments), import_(std::move(import)) {}

PoolTable::~PoolTable() {
  std::thread timer;
  {
    const std::lock_guard<std::mutex> lock(stop_mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  {
    const absl::MutexLock lock(&mutex_);
    timer = std::move(timer_);
  }
  if (timer.joinable()) timer.join();
}

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
  KVERN_RETURN_IF_ERROR(OpenRegions(*attachments_, import_, pool.get()));
  KVERN_RETURN_IF_ERROR(ValidatePool(pool->spec, pool->regions, limits_));
  KVERN_RETURN_IF_ERROR(Add(pool));
  return std::shared_ptr<const Pool>(std::move(pool));
}

absl::Status PoolTable::Add(std::shared_ptr<Pool> pool) {
  const uid_t owner = pool->regions.front()->Owner();
  const absl::MutexLock lock(&mutex_);
  std::string& id = pool->spec.id;
  if (pools_.contains(id)) {
    return absl::AlreadyExistsError(
        absl::StrCat("pool.name: got ", id, ", which is registered; want a new id or none"));
  }
  const int64_t owned = std::count_if(pools_.begin(), pools_.end(), [&](const auto& entry) {
    return entry.second.pool->regions.front()->Owner() == owner;
  });
  if (owned >= limits_.pools_per_peer) {
    return absl::ResourceExhaustedError(
        absl::StrCat("pools: this user has ", owned, ", want at most ", limits_.pools_per_peer));
  }
  // A connection that ended meanwhile told us before the pool was here to expire. Asked under our
  // lock: one that ends later finds the pool.
  KVERN_RETURN_IF_ERROR(StillAttached(*attachments_, *pool));
  Entry entry;
  if (pool->leased) {
    KVERN_RETURN_IF_ERROR(StartTimer());
    entry.expires = LeaseEnd();
  }
  while (id.empty() || pools_.contains(id)) id = absl::StrCat("pool-", next_id_++);
  entry.pool = std::move(pool);
  pools_.emplace(id, std::move(entry));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Pool>> PoolTable::Find(const std::string& id) const {
  const absl::MutexLock lock(&mutex_);
  const auto entry = pools_.find(id);
  if (entry == pools_.end() || entry->second.expires <= Clock::now()) return Expired(id);
  return entry->second.pool;
}

std::vector<std::shared_ptr<const Pool>> PoolTable::List() const {
  const absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<const Pool>> pools;
  pools.reserve(pools_.size());
  for (const auto& [id, entry] : pools_) pools.push_back(entry.pool);
  return pools;
}

bool PoolTable::Unregister(const std::string& id) {
  std::shared_ptr<const Pool> ended;  // unmaps, if it is the last holder, outside the lock
  const absl::MutexLock lock(&mutex_);
  const auto entry = pools_.find(id);
  if (entry == pools_.end()) return false;
  ended = std::move(entry->second.pool);
  pools_.erase(entry);
  return true;
}

int64_t PoolTable::ExpireConnection(int64_t connection) {
  std::vector<std::shared_ptr<const Pool>> ended;
  const absl::MutexLock lock(&mutex_);
  for (auto entry = pools_.begin(); entry != pools_.end();) {
    const std::vector<int64_t>& connections = entry->second.pool->connections;
    if (std::find(connections.begin(), connections.end(), connection) == connections.end()) {
      ++entry;
      continue;
    }
    ended.push_back(std::move(entry->second.pool));
    entry = pools_.erase(entry);
  }
  return static_cast<int64_t>(ended.size());
}

absl::StatusOr<int64_t> PoolTable::Renew(const std::string& id) {
  const absl::MutexLock lock(&mutex_);
  const auto entry = pools_.find(id);
  if (entry == pools_.end() || entry->second.expires <= Clock::now()) return Expired(id);
  if (!entry->second.pool->leased) return 0;
  entry->second.expires = LeaseEnd();
  return limits_.pool_lease;
}

void PoolTable::OnLeaseEnd(std::function<void()> on_lease_end) {
  const absl::MutexLock lock(&mutex_);
  on_lease_end_ = std::move(on_lease_end);
}

absl::Status PoolTable::StartTimer() {
  if (timer_.joinable()) return absl::OkStatus();
  try {
    timer_ = std::thread([this] { EndLeases(); });
  } catch (const std::system_error&) {
    return absl::ResourceExhaustedError("pool: no thread could be started for its lease");
  }
  return absl::OkStatus();
}

void PoolTable::EndLeases() {
  while (true) {
    std::vector<std::shared_ptr<const Pool>> ended;
    std::function<void()> on_lease_end;
    // All leases are as long: one that starts while we wait ends after this.
    Clock::time_point next = LeaseEnd();
    {
      const absl::MutexLock lock(&mutex_);
      for (const auto& [id, entry] : pools_) next = std::min(next, entry.expires);
    }
    {
      std::unique_lock<std::mutex> lock(stop_mutex_);
      if (stop_.wait_until(lock, next, [this] { return stopping_; })) return;
    }
    {
      const absl::MutexLock lock(&mutex_);
      const Clock::time_point now = Clock::now();
      for (auto entry = pools_.begin(); entry != pools_.end();) {
        if (entry->second.expires > now) {
          ++entry;
          continue;
        }
        ended.push_back(std::move(entry->second.pool));
        entry = pools_.erase(entry);
      }
      on_lease_end = on_lease_end_;
    }
    for (auto& pool : ended) {
      pool.reset();
      if (on_lease_end) on_lease_end();
    }
  }
}

}  // namespace kvern::memory
