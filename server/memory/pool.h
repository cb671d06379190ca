// Paged pools of the frontend: validated descriptions over leased regions.
#ifndef KVERN_SERVER_MEMORY_POOL_H_
#define KVERN_SERVER_MEMORY_POOL_H_

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kernels/base/kv_ref.h"
#include "server/memory/limits.h"
#include "server/memory/region.h"

namespace kvern::memory {

// Strides in bytes; see kvern.v1.KvView.
struct PoolView {
  int32_t region = 0;
  int64_t base_offset = 0;
  KvStrides strides;
};
struct PoolLayer {
  int32_t layer = 0;
  PoolView k;
  PoolView v;
};
// Memory that the broker took, or that the pool names itself (CUDA IPC). Secrets both.
struct RegionSource {
  RegionSource(const AttachmentId& id) : attachment(id) {}
  RegionSource(DeviceHandle named)
      : handle(std::make_shared<const DeviceHandle>(std::move(named))) {}
  AttachmentId attachment = {};
  std::shared_ptr<const DeviceHandle> handle;  // null: the attachment
};
enum class EngineLabel : uint8_t { kVllm, kSglang, kTrtllm, kLlamacpp, kTransformers, kOther };

struct PoolSpec {
  std::string id;  // without the `pools/` prefix; empty: chosen
  std::string model;
  DType dtype = DType::kBF16;
  int32_t kv_heads = 0;  // of the model
  int32_t head_dim = 0;
  int32_t block_tokens = 0;
  int64_t num_blocks = 0;
  std::vector<RegionSource> regions;
  std::vector<PoolLayer> layers;
  int max_shape_class = 2;  // 0..4
  EngineLabel engine = EngineLabel::kOther;
  bool read_only = false;
};

// A registered pool; holding the pointer is the lease that keeps its regions mapped.
struct Pool {
  PoolSpec spec;
  std::vector<std::shared_ptr<Region>> regions;
  std::vector<int64_t> connections;  // broker connections whose end expires the pool
  int64_t mapped_bytes = 0;
  bool leased = false;  // has memory of no connection: expires unless renewed

  bool OnDevice() const { return regions.front()->OnDevice(); }  // its regions are of one kind
  // View of one layer's keys or values over a validated table (borrowed, outlives the view).
  KvRef Keys(int64_t layer_slot, const std::vector<uint32_t>& block_ids, int64_t tokens) const;
  KvRef Values(int64_t layer_slot, const std::vector<uint32_t>& block_ids, int64_t tokens) const;
};

// Every address a view can form (all strides, last block, head, token, dim, either sign) lies in
// its region, checked in 128 bits; strides are multiples of the element size; no two coordinates of
// one view share an address; K and V views that share a region do not overlap unless they
// interleave without touching. Errors: InvalidArgument with field path.
absl::Status ValidatePool(const PoolSpec& spec, const std::vector<std::shared_ptr<Region>>& regions,
                          const Limits& limits);

// Thread-safe. Memory of pools that end is unmapped by whoever lets go last, never under the lock.
class PoolTable {
 public:
  PoolTable(const Limits& limits, AttachmentTable* attachments, ImportDevice import = nullptr);
  ~PoolTable();
  // Errors: of OpenRegions and ValidatePool; AlreadyExists; ResourceExhausted.
  absl::StatusOr<std::shared_ptr<const Pool>> Register(PoolSpec spec);
  // Errors: NotFound/POOL_EXPIRED.
  absl::StatusOr<std::shared_ptr<const Pool>> Find(const std::string& id) const;
  std::vector<std::shared_ptr<const Pool>> List() const;
  bool Unregister(const std::string& id);
  // The broker saw a connection end: its pools expire. Returns how many.
  int64_t ExpireConnection(int64_t connection);
  // Counts the lease anew. Returns its seconds; 0 for a pool that needs none. Errors:
  // NotFound/POOL_EXPIRED.
  absl::StatusOr<int64_t> Renew(const std::string& id);
  // Told once per pool whose lease ended, on a thread of the table.
  void OnLeaseEnd(std::function<void()> on_lease_end);
  // For the broker.
  const ImportDevice& Import() const { return import_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Entry {
    std::shared_ptr<const Pool> pool;
    Clock::time_point expires = Clock::time_point::max();
  };

  absl::Status Add(std::shared_ptr<Pool> pool);
  absl::Status StartTimer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndLeases();
  Clock::time_point LeaseEnd() const {
    return Clock::now() + std::chrono::seconds(limits_.pool_lease);
  }

  const Limits limits_;
  AttachmentTable* const attachments_;
  const ImportDevice import_;
  mutable absl::Mutex mutex_;
  absl::btree_map<std::string, Entry> pools_ ABSL_GUARDED_BY(mutex_);
  int64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  std::mutex stop_mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;  // under stop_mutex_
  std::function<void()> on_lease_end_ ABSL_GUARDED_BY(mutex_);
  std::thread timer_ ABSL_GUARDED_BY(mutex_);  // runs from the first lease on
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_POOL_H_
