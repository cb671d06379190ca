// A client stream: reads message after message, ends once, and gives up on a silent client.
#ifndef KVERN_SERVER_RPC_READ_STREAM_H_
#define KVERN_SERVER_RPC_READ_STREAM_H_

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/base/error_reason.h"
#include "server/rpc/idle_timer.h"
#include "server/rpc/rpc_scope.h"

namespace kvern::rpc {

// Owns itself from Begin to OnDone; work that goes on elsewhere holds it by Shared().
//
// gRPC's callbacks, the idle timer and a worker may all want to end the call. Who moves `phase_`
// out of kReading does: an error or a timeout to kEnded, a complete stream to kCompleting, a
// message that goes to a worker to kHandling, from where Resume leads on.
template <class Request>
class ReadStream : public grpc::ServerReadReactor<Request>,
                   public std::enable_shared_from_this<ReadStream<Request>> {
 public:
  ReadStream(RpcScope scope, const grpc::CallbackServerContext* context)
      : scope_(std::move(scope)), context_(context) {}

  void Begin(absl::Duration patience) {
    self_ = this->shared_from_this();
    patience_ = patience;
    AwaitClient();
    this->StartRead(&message_);
  }

 protected:
  enum class Next : uint8_t { kRead, kComplete, kLater };
  // One message; an error ends the call. kLater: some thread that holds Shared() will call Resume
  // once, with what else OnMessage would have answered; the message stays as it is until then.
  virtual absl::StatusOr<Next> OnMessage(Request* message) = 0;
  // All messages came (or enough of them). Must lead to one End, on any thread.
  virtual void OnComplete() = 0;

  // Only after kLater, not from within OnMessage.
  void Resume(const absl::StatusOr<Next>& next) {
    const std::shared_ptr<ReadStream> self = this->shared_from_this();
    // Held until the read is under way: else the new timer could end the call before it.
    const std::lock_guard<std::recursive_mutex> lock(turn_);
    Phase handling = Phase::kHandling;
    if (!phase_.compare_exchange_strong(handling, Phase::kReading)) return;
    AwaitClient();
    Follow(next);
  }

  // Only after OnComplete.
  void End(const absl::Status& status) {
    phase_ = Phase::kEnded;
    this->Finish(scope_.End(status));
  }
  template <class Derived>
  std::shared_ptr<Derived> Shared() {
    return std::static_pointer_cast<Derived>(this->shared_from_this());
  }
  absl::Time Deadline(absl::Duration fallback) const { return DeadlineOf(*context_, fallback); }

 private:
  enum class Phase : uint8_t { kReading, kHandling, kCompleting, kEnded };

  void AwaitClient() {
    timer_.emplace(patience_, [weak = std::weak_ptr<ReadStream>(this->shared_from_this())] {
      const std::shared_ptr<ReadStream> stream = weak.lock();
      if (stream == nullptr) return;
      stream->EndReading(WithReason(
          absl::DeadlineExceededError("got no message for the idle stream's time, want one"),
          "STREAM_IDLE"));
    });
  }

  bool LeaveReading(Phase to) {
    Phase reading = Phase::kReading;
    return phase_.compare_exchange_strong(reading, to);
  }
  void EndReading(const absl::Status& status) {
    const std::lock_guard<std::recursive_mutex> lock(turn_);
    if (LeaveReading(Phase::kEnded)) this->Finish(scope_.End(status));
  }
  void Complete() {
    if (LeaveReading(Phase::kCompleting)) OnComplete();
  }

  void OnReadDone(bool ok) final {
    if (phase_ != Phase::kReading) return;
    timer_->Touch();
    if (context_->IsCancelled()) {
      EndReading(absl::CancelledError("got a cancelled stream, want its end"));
      return;
    }
    if (!ok) {
      Complete();
      return;
    }
    const std::shared_ptr<ReadStream> self = this->shared_from_this();
    // Held, so that a worker which is quicker than this thread finds the phase that it leads on.
    const std::lock_guard<std::recursive_mutex> lock(turn_);
    if (phase_ == Phase::kReading) Follow(OnMessage(&message_));
  }

  void Follow(const absl::StatusOr<Next>& next) {
    if (!next.ok()) {
      EndReading(next.status());
    } else if (*next == Next::kComplete) {
      Complete();
    } else if (*next == Next::kLater) {
      LeaveReading(Phase::kHandling);
    } else if (phase_ == Phase::kReading) {
      this->StartRead(&message_);
    }
  }

  void OnDone() final {
    timer_->Stop();
    self_.reset();  // the last line: `this` may be gone
  }

  RpcScope scope_;
  const grpc::CallbackServerContext* const context_;
  std::atomic<Phase> phase_ = Phase::kReading;
  Request message_;
  absl::Duration patience_;
  // Recursive, since gRPC may run what follows on the thread that asked for it.
  std::recursive_mutex turn_;
  std::optional<IdleTimer> timer_;
  std::shared_ptr<ReadStream> self_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_READ_STREAM_H_
