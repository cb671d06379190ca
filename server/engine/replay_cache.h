// Answers of finished calls by request_id, so that a client which lost one may ask again (ruling
// 17).
#ifndef KVERN_SERVER_ENGINE_REPLAY_CACHE_H_
#define KVERN_SERVER_ENGINE_REPLAY_CACHE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/engine/compress_job.h"
#include "server/memory/limits.h"

namespace kvern::engine {

// Thread-safe. Time is passed in.
class ReplayCache {
 public:
  using Answer = absl::StatusOr<CompressResult>;
  using Waiter = std::function<void(const Answer&)>;
  enum class Begun : uint8_t {
    kRun,       // first of its id: the caller runs it and calls Finish exactly once
    kAttached,  // one of this id is running: `waiter` gets its answer
    kAnswered,  // `stored` is the answer
  };
  struct Start {
    Begun begun = Begun::kRun;
    std::shared_ptr<const CompressResult> stored;
  };

  explicit ReplayCache(const Limits& limits) : limits_(limits) {}

  // Inline sources are pure, and their bytes are not in the request's hash.
  static bool Takes(const CompressJob& job);

  // Errors: InvalidArgument for another request under the same id; ResourceExhausted/QUEUE_FULL
  // when too many calls wait for one of their id.
  absl::StatusOr<Start> Begin(const CompressJob& job, absl::Time now, Waiter waiter);
  // Keeps a good answer, forgets a failed call, and hands back who waited.
  std::vector<Waiter> Finish(const CompressJob& job, absl::Time now, const Answer& answer);
  // Drops answers that speak of these sequences.
  void Forget(const absl::flat_hash_set<std::string>& sequence_ids);
  // Answers dropped before their time because count or bytes were at their limit.
  int64_t Evictions() const { return evictions_.load(std::memory_order_relaxed); }

 private:
  using Key = std::pair<std::string, std::string>;  // peer, request_id
  struct Entry {
    uint64_t request_hash = 0;
    std::shared_ptr<const CompressResult> answer;  // null: running
    std::vector<Waiter> waiters;
    absl::Time stored_at;
    int64_t bytes = 0;
    std::list<Key>::iterator age;
  };
  void Erase(const Key& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Expire(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Keep(const Key& key, absl::Time now, const CompressResult& answer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  absl::Mutex mutex_;
  absl::flat_hash_map<Key, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::list<Key> ages_ ABSL_GUARDED_BY(mutex_);  // of stored answers, oldest first
  int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  std::atomic<int64_t> evictions_{0};
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_REPLAY_CACHE_H_
