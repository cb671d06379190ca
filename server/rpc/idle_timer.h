// Fires when nothing happened for a while.
#ifndef KVERN_SERVER_RPC_IDLE_TIMER_H_
#define KVERN_SERVER_RPC_IDLE_TIMER_H_

#include <functional>
#include <memory>

#include "absl/time/time.h"

namespace kvern::rpc {

// Thread-safe. `on_idle` runs at most once, on a thread of gRPC's, and may be running still when
// Stop returns: it must own what it touches.
class IdleTimer {
 public:
  IdleTimer(absl::Duration patience, std::function<void()> on_idle);
  ~IdleTimer();
  IdleTimer(const IdleTimer&) = delete;
  IdleTimer& operator=(const IdleTimer&) = delete;

  void Touch();
  void Stop();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_IDLE_TIMER_H_
