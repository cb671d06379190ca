// A ring of event pairs: read when it is full, or at the end of a lap.
#include "kernels/cuda/device_clock.h"

#include <cmath>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/device_context.h"

namespace kvern::cuda {

absl::Status DeviceClock::Open() {
  for (Span& span : spans_) {
    KVERN_RETURN_IF_ERROR(
        device_.Check(cudaEventCreateWithFlags(&span.start, cudaEventDefault), "making an event"));
    KVERN_RETURN_IF_ERROR(
        device_.Check(cudaEventCreateWithFlags(&span.stop, cudaEventDefault), "making an event"));
  }
  return absl::OkStatus();
}

DeviceClock::~DeviceClock() {
  if (!device_.Health().ok()) return;  // see ~DeviceContext
  for (const Span& span : spans_) {
    if (span.start != nullptr) cudaEventDestroy(span.start);
    if (span.stop != nullptr) cudaEventDestroy(span.stop);
  }
}

absl::Status DeviceClock::Start() {
  if (count_ == kSpans) {
    KVERN_RETURN_IF_ERROR(device_.Wait(spans_[first_].stop, Ask::kBoundCheck, "an op"));
    KVERN_RETURN_IF_ERROR(Read());
  }
  const Span& span = spans_[(first_ + count_) % kSpans];
  return device_.Check(cudaEventRecord(span.start, device_.stream()), "recording an event");
}

absl::Status DeviceClock::Stop() {
  const Span& span = spans_[(first_ + count_) % kSpans];
  ++count_;
  return device_.Check(cudaEventRecord(span.stop, device_.stream()), "recording an event");
}

absl::Status DeviceClock::Read() {
  const Span& span = spans_[first_];
  first_ = (first_ + 1) % kSpans;
  --count_;
  float elapsed_ms = 0;
  KVERN_RETURN_IF_ERROR(device_.Check(cudaEventElapsedTime(&elapsed_ms, span.start, span.stop),
                                      "reading the device's clock"));
  lap_ms_ += elapsed_ms;
  busy_seconds_.store(BusySeconds() + 1e-3 * elapsed_ms, std::memory_order_relaxed);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> DeviceClock::Lap() {
  while (count_ > 0) KVERN_RETURN_IF_ERROR(Read());
  const int64_t microseconds = std::llround(1e3 * lap_ms_);
  lap_ms_ = 0;
  return microseconds;
}

}  // namespace kvern::cuda
