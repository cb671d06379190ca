// A queue and a thread; tasks run in order, outside the lock.
#include "server/rpc/blocking_worker.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace kvern::rpc {

BlockingWorker::BlockingWorker(int64_t max_queued)
    : max_queued_(max_queued), thread_([this] { Run(); }) {}

BlockingWorker::~BlockingWorker() {
  {
    const absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

absl::Status BlockingWorker::Post(std::function<void()> task) {
  const absl::MutexLock lock(&mutex_);
  if (static_cast<int64_t>(queue_.size()) >= max_queued_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("got ", queue_.size(), " calls waiting, want fewer than ", max_queued_));
  }
  queue_.push_back(std::move(task));
  return absl::OkStatus();
}

void BlockingWorker::Run() {
  while (true) {
    std::function<void()> task;
    {
      const absl::MutexLock lock(&mutex_, absl::Condition(this, &BlockingWorker::HasWork));
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

}  // namespace kvern::rpc
