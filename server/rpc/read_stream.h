// A client stream: reads message after message, ends once, and gives up on a silent client.
#ifndef KVERN_SERVER_RPC_READ_STREAM_H_
#define KVERN_SERVER_RPC_READ_STREAM_H_

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <memory>
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
// out of kReading does: an error or a timeout to kEnded, a complete stream to kCompleting.
template <class Request>
class ReadStream : public grpc::ServerReadReactor<Request>,
                   public std::enable_shared_from_this<ReadStream<Request>> {
 public:
  ReadStream(RpcScope scope, const grpc::CallbackServerContext* context)
      : scope_(std::move(scope)), context_(context) {}

  void Begin(absl::Duration patience) {
    self_ = this->shared_from_this();
    timer_.emplace(patience, [weak = std::weak_ptr<ReadStream>(self_)] {
      const std::shared_ptr<ReadStream> stream = weak.lock();
      if (stream == nullptr) return;
      stream->EndReading(WithReason(
          absl::DeadlineExceededError("got no message for the idle stream's time, want one"),
          "STREAM_IDLE"));
    });
    this->StartRead(&message_);
  }

 protected:
  enum class Next : uint8_t { kRead, kComplete };
  // One message; an error ends the call.
  virtual absl::StatusOr<Next> OnMessage(Request* message) = 0;
  // All messages came (or enough of them). Must lead to one End, on any thread.
  virtual void OnComplete() = 0;

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
  enum class Phase : uint8_t { kReading, kCompleting, kEnded };

  bool LeaveReading(Phase to) {
    Phase reading = Phase::kReading;
    return phase_.compare_exchange_strong(reading, to);
  }
  void EndReading(const absl::Status& status) {
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
    const absl::StatusOr<Next> next = OnMessage(&message_);
    if (!next.ok()) {
      EndReading(next.status());
    } else if (*next == Next::kComplete) {
      Complete();
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
  std::optional<IdleTimer> timer_;
  std::shared_ptr<ReadStream> self_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_READ_STREAM_H_
