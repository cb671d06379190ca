// One thread for work that waits or takes long: gRPC's own threads are few and serve all calls.
#ifndef KVERN_SERVER_RPC_BLOCKING_WORKER_H_
#define KVERN_SERVER_RPC_BLOCKING_WORKER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace kvern::rpc {

class BlockingWorker {
 public:
  explicit BlockingWorker(int64_t max_queued);
  // Runs what is queued, then joins.
  ~BlockingWorker();
  BlockingWorker(const BlockingWorker&) = delete;
  BlockingWorker& operator=(const BlockingWorker&) = delete;

  // Errors: ResourceExhausted when max_queued wait; `task` is then dropped unrun.
  absl::Status Post(std::function<void()> task);

 private:
  void Run();
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !queue_.empty();
  }

  const int64_t max_queued_;
  absl::Mutex mutex_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_BLOCKING_WORKER_H_
