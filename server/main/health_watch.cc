// Polling, because what loses a device is found by whoever happens to use it.
#include "server/main/health_watch.h"

#include <chrono>
#include <utility>

namespace kvern {

HealthWatch::HealthWatch(std::function<absl::Status()> health,
                         std::function<void(const absl::Status&)> lost)
    : health_(std::move(health)), lost_(std::move(lost)), thread_([this] { Watch(); }) {}

HealthWatch::~HealthWatch() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void HealthWatch::Watch() {
  constexpr auto kPause = std::chrono::milliseconds(200);
  std::unique_lock<std::mutex> lock(mutex_);
  while (!wake_.wait_for(lock, kPause, [this] { return ends_; })) {
    const absl::Status status = health_();
    if (status.ok()) continue;
    lost_(status);
    return;
  }
}

}  // namespace kvern
