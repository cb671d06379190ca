// One alarm at a time: when it rings early, because something happened since, a new one is set.
#include "server/rpc/idle_timer.h"

#include <grpcpp/alarm.h>

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace kvern::rpc {

struct IdleTimer::State : std::enable_shared_from_this<IdleTimer::State> {
  State(absl::Duration patience, std::function<void()> on_idle)
      : patience(patience), on_idle(std::move(on_idle)), last(absl::Now()) {}

  void Arm() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    alarm = std::make_shared<grpc::Alarm>();
    // The alarm holds this state and this state the alarm; Ring breaks the circle.
    alarm->Set(absl::ToChronoTime(last + patience),
               [self = shared_from_this()](bool) { self->Ring(); });
  }

  // Expired or cancelled.
  void Ring() {
    std::shared_ptr<grpc::Alarm> rung;  // must outlive the lock, must not outlive this call
    std::function<void()> fire;
    {
      const absl::MutexLock lock(&mutex);
      rung = std::move(alarm);
      if (stopped) {
        on_idle = nullptr;
        return;
      }
      if (absl::Now() < last + patience) {
        Arm();
        return;
      }
      stopped = true;
      fire = std::move(on_idle);
    }
    if (fire) fire();
  }

  const absl::Duration patience;
  absl::Mutex mutex;
  std::function<void()> on_idle ABSL_GUARDED_BY(mutex);
  absl::Time last ABSL_GUARDED_BY(mutex);
  bool stopped ABSL_GUARDED_BY(mutex) = false;
  std::shared_ptr<grpc::Alarm> alarm ABSL_GUARDED_BY(mutex);
};

IdleTimer::IdleTimer(absl::Duration patience, std::function<void()> on_idle)
    : state_(std::make_shared<State>(patience, std::move(on_idle))) {
  const absl::MutexLock lock(&state_->mutex);
  state_->Arm();
}

IdleTimer::~IdleTimer() { Stop(); }

void IdleTimer::Touch() {
  const absl::MutexLock lock(&state_->mutex);
  state_->last = absl::Now();
}

void IdleTimer::Stop() {
  std::shared_ptr<grpc::Alarm> alarm;
  {
    const absl::MutexLock lock(&state_->mutex);
    state_->stopped = true;
    alarm = state_->alarm;
  }
  if (alarm != nullptr) alarm->Cancel();
}

}  // namespace kvern::rpc
