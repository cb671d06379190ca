// When a call is no longer wanted: its client left, its deadline passed, or the server shuts down.
#ifndef KVERN_SERVER_ENGINE_JOB_STOP_H_
#define KVERN_SERVER_ENGINE_JOB_STOP_H_

#include <atomic>
#include <memory>

#include "absl/time/time.h"
#include "kernels/backend.h"
#include "server/engine/failpoint.h"

namespace kvern::engine {

class JobStop : public StopCheck {
 public:
  // `shutdown` outlives the check; `cancelled` may be null.
  JobStop(absl::Time deadline, std::shared_ptr<const std::atomic<bool>> cancelled,
          const std::atomic<bool>* shutdown)
      : deadline_(deadline), cancelled_(std::move(cancelled)), shutdown_(shutdown) {}

  absl::Status Check() const override;

 private:
  const absl::Time deadline_;
  const std::shared_ptr<const std::atomic<bool>> cancelled_;
  const std::atomic<bool>* const shutdown_;
};

// True for the statuses that a StopCheck answers.
bool IsStop(const absl::Status& status);

// Asked during a move: passes on `inner` (null: the move must not stop) and, once something moved,
// the failpoint.
class MoveStop : public StopCheck {
 public:
  MoveStop(const StopCheck* inner, Failpoint point) : inner_(inner), point_(point) {}
  absl::Status Check() const override;

 private:
  const StopCheck* const inner_;
  const Failpoint point_;
  mutable std::atomic<bool> asked_{false};
};

// Binds a check for a scope, then the one that was bound around it.
class BoundStop {
 public:
  BoundStop(Backend& backend, const StopCheck* stop, const StopCheck* around)
      : backend_(backend), around_(around) {
    backend_.Bind(stop);
  }
  ~BoundStop() { backend_.Bind(around_); }
  BoundStop(const BoundStop&) = delete;
  BoundStop& operator=(const BoundStop&) = delete;

 private:
  Backend& backend_;
  const StopCheck* const around_;
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_JOB_STOP_H_
