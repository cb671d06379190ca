// A bounded queue in front of the one thread that drives a backend.
#ifndef KVERN_SERVER_ENGINE_WORK_QUEUE_H_
#define KVERN_SERVER_ENGINE_WORK_QUEUE_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/memory/limits.h"

namespace kvern::engine {

// Thread-safe.
class WorkQueue {
 public:
  struct Task {
    // Exactly one of both runs, on the worker: `run` with the time it waited, or `refuse` with
    // Unavailable when the queue ends first.
    std::function<void(absl::Duration waited)> run;
    std::function<void(absl::Status)> refuse;
    int64_t bytes = 0;
  };
  struct Levels {
    int64_t depth = 0;
    int64_t bytes = 0;  // of the running task too
    double oldest_seconds = 0;
  };

  explicit WorkQueue(const Limits& limits);
  // Refuses what still waits, lets the running task end, joins.
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  // Takes the task or answers why not, then neither function runs. Errors: Unavailable/DRAINING;
  // ResourceExhausted/QUEUE_FULL.
  absl::Status Submit(Task task);
  // Takes no more tasks; true when all taken ones ended within the time.
  bool Drain(absl::Duration patience);
  bool Draining() const;
  static absl::Status DrainingError();
  Levels Now() const;

 private:
  struct Waiting {
    Task task;
    absl::Time since;
  };
  void Work();

  const Limits limits_;
  mutable std::mutex mutex_;  // guards all below
  std::condition_variable work_;
  std::condition_variable idle_;
  std::list<Waiting> tasks_;
  std::list<Waiting> spares_;  // nodes that tasks left, empty
  int64_t bytes_ = 0;
  bool running_ = false;
  bool draining_ = false;
  bool ending_ = false;
  std::thread worker_;  // last: starts when all else stands
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_WORK_QUEUE_H_
