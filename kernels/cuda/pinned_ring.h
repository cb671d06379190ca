// Host memory that the device copies from and to by itself, reserved at start, in two halves: the
// host fills one while the device reads the other.
#ifndef KVERN_KERNELS_CUDA_PINNED_RING_H_
#define KVERN_KERNELS_CUDA_PINNED_RING_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/runtime.h"

namespace kvern::cuda {

class DeviceContext;
enum class Ask : uint8_t;

class PinnedRing {
 public:
  static constexpr int kHalves = 2;

  // All copies of the ring run on the stream of `device`, which outlives it.
  static absl::StatusOr<std::unique_ptr<PinnedRing>> Make(DeviceContext& device,
                                                          int64_t half_bytes);
  ~PinnedRing();  // the device is idle, or lost
  PinnedRing(const PinnedRing&) = delete;
  PinnedRing& operator=(const PinnedRing&) = delete;

  int half() const { return half_; }
  // Up to `count` whole units of the current half, aligned to 16; none when it is used up. The
  // memory stays the caller's until the second Turn from now.
  std::span<std::byte> Take(int64_t unit_bytes, int64_t count);
  // Marks the end of the copies enqueued so far in the current half.
  absl::Status Seal();
  // Waits for the last Seal of a half.
  absl::Status Await(int half, Ask ask);
  // Seals the current half and goes on in the other one, when its copies are done.
  absl::Status Turn(Ask ask);

 private:
  PinnedRing(DeviceContext& device, int64_t half_bytes)
      : device_(device), half_bytes_(half_bytes) {}

  DeviceContext& device_;
  const int64_t half_bytes_;
  std::byte* memory_ = nullptr;  // [kHalves, half_bytes]
  cudaEvent_t sealed_[kHalves] = {};
  int half_ = 0;
  int64_t used_ = 0;
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_PINNED_RING_H_
