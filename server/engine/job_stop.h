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
// the failpoint. `first_questions` come before that: one at the start of the keys and, where tiles
// ask too, one before the first tile (of each worker, so only one worker knows that bytes moved).
class MoveStop : public StopCheck {
 public:
  MoveStop(const StopCheck* inner, Failpoint point, int first_questions)
      : inner_(inner), point_(point), first_questions_(first_questions) {}
  absl::Status Check() const override;

 private:
  const StopCheck* const inner_;
  const Failpoint point_;
  const int first_questions_;
  mutable std::atomic<int> asked_{0};
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
