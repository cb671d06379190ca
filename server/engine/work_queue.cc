// Sheds the newest call when full, and never starts one that it could not end.
#include "server/engine/work_queue.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/error_reason.h"

namespace kvern::engine {
namespace {

absl::Status Full(const char* unit, int64_t got, int64_t want) {
  return WithReason(absl::ResourceExhaustedError(
                        absl::StrCat("queue: got ", got, " ", unit, ", want at most ", want)),
                    "QUEUE_FULL");
}

}  // namespace

WorkQueue::WorkQueue(const Limits& limits) : limits_(limits), worker_([this] { Work(); }) {}

WorkQueue::~WorkQueue() {
  {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
    ending_ = true;
  }
  worker_.join();
}

absl::Status WorkQueue::Submit(Task task) {
  absl::MutexLock lock(&mutex_);
  if (draining_) return DrainingError();
  const auto depth = static_cast<int64_t>(tasks_.size());
  if (depth >= limits_.queued_calls) return Full("calls", depth + 1, limits_.queued_calls);
  if (task.bytes > limits_.queued_bytes - bytes_) {
    return Full("bytes", bytes_ + task.bytes, limits_.queued_bytes);
  }
  bytes_ += task.bytes;
  tasks_.push_back({std::move(task), absl::Now()});
  return absl::OkStatus();
}

absl::Status WorkQueue::DrainingError() {
  return WithReason(absl::UnavailableError("server: draining, nothing changed"), "DRAINING");
}

bool WorkQueue::Drain(absl::Duration patience) {
  absl::MutexLock lock(&mutex_);
  draining_ = true;
  return mutex_.AwaitWithTimeout(absl::Condition(this, &WorkQueue::Idle), patience);
}

bool WorkQueue::Draining() const {
  absl::MutexLock lock(&mutex_);
  return draining_;
}

WorkQueue::Levels WorkQueue::Now() const {
  absl::MutexLock lock(&mutex_);
  Levels levels;
  levels.depth = static_cast<int64_t>(tasks_.size());
  levels.bytes = bytes_;
  if (!tasks_.empty()) {
    levels.oldest_seconds = absl::ToDoubleSeconds(absl::Now() - tasks_.front().since);
  }
  return levels;
}

void WorkQueue::Work() {
  while (true) {
    Waiting next;
    bool refuse = false;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &WorkQueue::HasWork));
      if (tasks_.empty()) return;
      next = std::move(tasks_.front());
      tasks_.pop_front();
      running_ = true;
      refuse = ending_;
    }
    const int64_t bytes = next.task.bytes;
    if (refuse) {
      next.task.refuse(DrainingError());
    } else {
      next.task.run(absl::Now() - next.since);
    }
    // What the task held is gone before its bytes count as free.
    next = Waiting();
    absl::MutexLock lock(&mutex_);
    bytes_ -= bytes;
    running_ = false;
  }
}

}  // namespace kvern::engine
