// One event per half says when the device is done with it; nobody blocks inside the driver.
#include "kernels/cuda/pinned_ring.h"

#include <algorithm>
#include <utility>

#include "kernels/base/status_macros.h"
#include "kernels/cuda/device_context.h"

namespace kvern::cuda {

absl::StatusOr<std::unique_ptr<PinnedRing>> PinnedRing::Make(DeviceContext& device,
                                                             int64_t half_bytes) {
  std::unique_ptr<PinnedRing> ring(new PinnedRing(device, half_bytes));
  void* memory = nullptr;
  KVERN_RETURN_IF_ERROR(device.Check(
      cudaHostAlloc(&memory, static_cast<size_t>(kHalves * half_bytes), cudaHostAllocPortable),
      "reserving pinned memory"));
  ring->memory_ = static_cast<std::byte*>(memory);
  for (cudaEvent_t& event : ring->sealed_) {
    KVERN_RETURN_IF_ERROR(
        device.Check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "making an event"));
  }
  return ring;
}

PinnedRing::~PinnedRing() {
  if (!device_.Health().ok()) return;  // see ~DeviceContext
  for (cudaEvent_t event : sealed_) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  if (memory_ != nullptr) cudaFreeHost(memory_);
}

std::span<std::byte> PinnedRing::Take(int64_t unit_bytes, int64_t count) {
  constexpr int64_t kAlign = 16;
  const int64_t bytes = std::min(count, (half_bytes_ - used_) / unit_bytes) * unit_bytes;
  std::byte* const piece = memory_ + half_ * half_bytes_ + used_;
  used_ = std::min(half_bytes_, (used_ + bytes + kAlign - 1) / kAlign * kAlign);
  return {piece, static_cast<size_t>(bytes)};
}

absl::Status PinnedRing::Seal() {
  KVERN_RETURN_IF_ERROR(device_.Health());
  return device_.Check(cudaEventRecord(sealed_[half_], device_.stream()), "recording an event");
}

absl::Status PinnedRing::Await(int half, Ask ask) {
  return device_.Wait(sealed_[half], ask, "a copy");
}

absl::Status PinnedRing::Turn(Ask ask) {
  KVERN_RETURN_IF_ERROR(Seal());
  KVERN_RETURN_IF_ERROR(Await(1 - half_, ask));
  half_ = 1 - half_;
  used_ = 0;
  return absl::OkStatus();
}

}  // namespace kvern::cuda
