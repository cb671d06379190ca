// How far streams of ObserveQueries came, so that one which broke off goes on and counts nothing
// twice.
#ifndef KVERN_SERVER_RPC_OBSERVE_LOG_H_
#define KVERN_SERVER_RPC_OBSERVE_LOG_H_

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/memory/limits.h"

namespace kvern::rpc {

// Thread-safe. Keeps the most recently opened ids: replay_answers of them, for replay_seconds since
// a stream of theirs was opened.
class ObserveLog {
 public:
  explicit ObserveLog(const Limits& limits) : limits_(limits) {}

  // Messages of one id that were counted, by all its streams.
  struct Progress {
    absl::Mutex mutex;
    int64_t messages ABSL_GUARDED_BY(mutex) = 0;
    std::string chain ABSL_GUARDED_BY(mutex);  // digest of these messages, in order
  };
  struct Id {
    std::string peer, request_id;
    int64_t model_life;  // what was counted for a model is gone with it
    bool operator==(const Id&) const = default;
    template <class H>
    friend H AbslHashValue(H state, const Id& id) {
      return H::combine(std::move(state), id.peer, id.request_id, id.model_life);
    }
  };
  std::shared_ptr<Progress> Open(const Id& id, absl::Time now);

 private:
  struct Entry {
    Id id;
    std::shared_ptr<Progress> progress;
    absl::Time opened;
  };
  const Limits limits_;
  absl::Mutex mutex_;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);  // oldest first
  absl::flat_hash_map<Id, std::list<Entry>::iterator> by_id_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_OBSERVE_LOG_H_
