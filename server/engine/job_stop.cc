// Deadline and cancellation as one question that kernels ask between tiles.
#include "server/engine/job_stop.h"

#include "absl/time/clock.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {

absl::Status JobStop::Check() const {
  if (cancelled_ != nullptr && cancelled_->load(std::memory_order_relaxed)) {
    return absl::CancelledError("call: cancelled by the client");
  }
  if (shutdown_->load(std::memory_order_relaxed)) {
    return absl::CancelledError("call: ended by the server's shutdown");
  }
  if (absl::Now() >= deadline_) return absl::DeadlineExceededError("call: its deadline passed");
  return absl::OkStatus();
}

bool IsStop(const absl::Status& status) {
  return absl::IsCancelled(status) || absl::IsDeadlineExceeded(status);
}

absl::Status MoveStop::Check() const {
  if (inner_ != nullptr) KVERN_RETURN_IF_ERROR(inner_->Check());
  if (asked_.fetch_add(1, std::memory_order_relaxed) < first_questions_) return absl::OkStatus();
  return Hit(point_);
}

}  // namespace kvern::engine
