// Turns the health service to NOT_SERVING when the backend's device is lost.
#ifndef KVERN_SERVER_MAIN_HEALTH_WATCH_H_
#define KVERN_SERVER_MAIN_HEALTH_WATCH_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/status.h"

namespace kvern {

// Asks `health` five times a second on a thread of its own; on the first answer that is not ok,
// calls `lost` with it, once, and asks no more.
class HealthWatch {
 public:
  HealthWatch(std::function<absl::Status()> health, std::function<void(const absl::Status&)> lost);
  ~HealthWatch();
  HealthWatch(const HealthWatch&) = delete;
  HealthWatch& operator=(const HealthWatch&) = delete;

 private:
  void Watch();

  const std::function<absl::Status()> health_;
  const std::function<void(const absl::Status&)> lost_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ends_ = false;   // under mutex_
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace kvern

#endif  // KVERN_SERVER_MAIN_HEALTH_WATCH_H_
