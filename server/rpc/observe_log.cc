// A list in order of opening, and a table that points into it.
#include "server/rpc/observe_log.h"

namespace kvern::rpc {

std::shared_ptr<ObserveLog::Progress> ObserveLog::Open(const Id& id, absl::Time now) {
  const absl::MutexLock lock(&mutex_);
  const absl::Duration age = absl::Seconds(limits_.replay_seconds);
  while (!entries_.empty() && entries_.front().opened + age < now) {
    by_id_.erase(entries_.front().id);
    entries_.pop_front();
  }
  std::shared_ptr<Progress> progress;
  if (const auto found = by_id_.find(id); found != by_id_.end()) {
    progress = found->second->progress;
    entries_.erase(found->second);
  } else {
    progress = std::make_shared<Progress>();
  }
  entries_.push_back({id, progress, now});
  by_id_[id] = std::prev(entries_.end());
  while (static_cast<int64_t>(entries_.size()) > limits_.replay_answers) {
    by_id_.erase(entries_.front().id);
    entries_.pop_front();
  }
  return progress;
}

}  // namespace kvern::rpc
