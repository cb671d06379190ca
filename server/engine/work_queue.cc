// Sheds the newest call when full, and never starts one that it could not end.
#include "server/engine/work_queue.h"

#include <algorithm>
#include <chrono>
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
    const std::lock_guard<std::mutex> lock(mutex_);
    draining_ = true;
    ending_ = true;
  }
  work_.notify_one();
  worker_.join();
}

absl::Status WorkQueue::Submit(Task task) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (draining_) return DrainingError();
  const auto depth = static_cast<int64_t>(tasks_.size());
  if (depth >= limits_.queued_calls) return Full("calls", depth + 1, limits_.queued_calls);
  if (task.bytes > limits_.queued_bytes - bytes_) {
    return Full("bytes", bytes_ + task.bytes, limits_.queued_bytes);
  }
  if (spares_.empty()) spares_.emplace_back();
  bytes_ += task.bytes;
  spares_.front() = {std::move(task), absl::Now()};
  tasks_.splice(tasks_.end(), spares_, spares_.begin());
  work_.notify_one();
  return absl::OkStatus();
}

absl::Status WorkQueue::DrainingError() {
  return WithReason(absl::UnavailableError("server: draining, nothing changed"), "DRAINING");
}

bool WorkQueue::Drain(absl::Duration patience) {
  std::unique_lock<std::mutex> lock(mutex_);
  draining_ = true;
  // A condition variable's clock ends earlier than an infinite duration.
  const absl::Duration longest = std::min(patience, absl::Hours(24));
  return idle_.wait_for(lock, absl::ToChronoMilliseconds(longest),
                        [this] { return tasks_.empty() && !running_; });
}

bool WorkQueue::Draining() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return draining_;
}

WorkQueue::Levels WorkQueue::Now() const {
  const std::lock_guard<std::mutex> lock(mutex_);
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
      std::unique_lock<std::mutex> lock(mutex_);
      work_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      next = std::exchange(tasks_.front(), Waiting());
      spares_.splice(spares_.begin(), tasks_, tasks_.begin());
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
    const std::lock_guard<std::mutex> lock(mutex_);
    bytes_ -= bytes;
    running_ = false;
    idle_.notify_all();
  }
}

}  // namespace kvern::engine
