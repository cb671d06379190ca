// How long the device worked on ops, by its own clock: pauses between ops do not count.
#ifndef KVERN_KERNELS_CUDA_DEVICE_CLOCK_H_
#define KVERN_KERNELS_CUDA_DEVICE_CLOCK_H_

#include <atomic>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

class DeviceContext;

// Of the thread that runs ops, but for BusySeconds.
class DeviceClock {
 public:
  explicit DeviceClock(DeviceContext& device) : device_(device) {}
  ~DeviceClock();  // the device is idle, or lost
  DeviceClock(const DeviceClock&) = delete;
  DeviceClock& operator=(const DeviceClock&) = delete;
  absl::Status Open();

  // Around the launches of one op, in stream order.
  absl::Status Start();
  absl::Status Stop();
  // Microseconds since the last Lap. All work is complete.
  absl::StatusOr<int64_t> Lap();
  // Thread-safe. Ops whose time has been read, at the latest by Lap.
  double BusySeconds() const { return busy_seconds_.load(std::memory_order_relaxed); }

 private:
  static constexpr int kSpans = 64;
  struct Span {
    cudaEvent_t start = nullptr;
    cudaEvent_t stop = nullptr;
  };
  // Adds the oldest span, which must be complete.
  absl::Status Read();

  DeviceContext& device_;
  Span spans_[kSpans];
  int first_ = 0;
  int count_ = 0;
  double lap_ms_ = 0;
  std::atomic<double> busy_seconds_{0};
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_DEVICE_CLOCK_H_
