// One device: its stream, the memory reserved on it at start, and whether it still answers.
//
// A device is lost when a call returns an error that no retry cures, or when it does not finish in
// time. From then on nothing here calls CUDA again: every call returns the same status at once, and
// what the device held stays where it is until the process ends.
#ifndef KVERN_KERNELS_CUDA_DEVICE_CONTEXT_H_
#define KVERN_KERNELS_CUDA_DEVICE_CONTEXT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/backend.h"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/device_clock.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/staging.h"

namespace kvern::cuda {

struct DeviceOptions {
  std::string device = "0";    // index, or "GPU-xxxxxxxx-xxxx-..."
  int64_t scratch_bytes = 0;   // 0: a quarter of what is free, at most 8 GiB
  int64_t store_bytes = 0;     // reserved beside it, for what is allocated once and kept
  double hang_seconds = 10.0;  // a wait that takes longer finds the device lost
};

// What a wait asks meanwhile. The bound StopCheck is of the thread that runs ops.
enum class Ask : uint8_t {
  kBoundCheck,
  kHurry,    // the bound StopCheck only shortens the wait: what it is for is short and has to end
  kNothing,  // other threads
};

class DeviceContext {
 public:
  // Errors: FailedPrecondition when no such device answers (the message ends with CUDA's word for
  // it); InvalidArgument for a device that is neither index nor UUID; ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<DeviceContext>> Open(const DeviceOptions& options);
  ~DeviceContext();
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  // Thread-safe, lock-free.
  absl::Status Health() const {
    const absl::Status* lost = lost_.load(std::memory_order_acquire);
    return lost == nullptr ? absl::OkStatus() : *lost;
  }
  // The status of a CUDA call that was just made; a sticky error loses the device. Thread-safe.
  // `what` is the op or the step, for the message.
  absl::Status Check(cudaError_t error, absl::string_view what);
  // The device is lost for another reason. Returns Health().
  absl::Status Lose(absl::Status status);

  // After a call that failed, maybe for what others sent: whether the device itself still works.
  // Thread-safe.
  absl::Status Probe(absl::string_view what);

  // Waits without blocking inside the driver. When the check fires: its status, once the device has
  // finished or noticed the stop word; the device is lost if that takes 0.8 s.
  absl::Status Wait(cudaEvent_t event, Ask ask, absl::string_view what);
  // Waits for all work enqueued so far. Thread-safe with Ask::kNothing.
  absl::Status Drain(Ask ask, absl::string_view what);
  // Makes this thread's calls go to this device, if it is not lost. Thread-safe.
  absl::Status Enter();

  void Bind(const StopCheck* stop) {
    stop_ = stop;
    binder_ = stop == nullptr ? std::thread::id() : std::this_thread::get_id();
  }
  absl::Status AskBound() const { return stop_ == nullptr ? absl::OkStatus() : stop_->Check(); }

  cudaStream_t stream() const { return stream_; }
  // A word of pinned memory, not zero while a call is no longer wanted.
  const int32_t* StopWord() const { return stop_word_; }
  Arena& arena() { return *arena_; }
  // Of the thread that runs ops.
  Staging& staging() { return *staging_; }
  DeviceClock& clock() { return *clock_; }

  // Whether kernels reach this address in place: memory of the device. Thread-safe.
  bool Reaches(const void* address);
  // Memory mapped from elsewhere, until Forget. Thread-safe.
  void Adopt(const std::byte* data, int64_t bytes);
  void Forget(const std::byte* data, int64_t bytes);

  // Complete when they return, after the ops before them. Thread-safe; the bound StopCheck is asked
  // by the thread that bound it.
  absl::Status CopyIn(std::span<const std::byte> host, std::byte* device);
  absl::Status CopyOut(const std::byte* device, std::span<std::byte> host);
  absl::Status Zero(std::byte* device, int64_t bytes);

  int ordinal() const { return ordinal_; }
  const std::string& instruction_set() const { return instruction_set_; }  // "sm_90"
  DeviceFacts Facts() const;                                               // thread-safe

 private:
  explicit DeviceContext(double hang_seconds) : hang_seconds_(hang_seconds) {}
  absl::Status Choose(const std::string& device);
  absl::Status Reserve(const DeviceOptions& options);
  Ask CopyAsk() const {
    return binder_ == std::this_thread::get_id() ? Ask::kBoundCheck : Ask::kNothing;
  }
  absl::Status AwaitEnd(cudaEvent_t end, Ask ask, absl::string_view what);

  const double hang_seconds_;
  std::atomic<const absl::Status*> lost_{nullptr};
  const StopCheck* stop_ = nullptr;
  std::atomic<std::thread::id> binder_{};
  int ordinal_ = 0;
  std::string instruction_set_;
  DeviceFacts facts_;
  cudaStream_t stream_ = nullptr;
  int32_t* stop_word_ = nullptr;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<DeviceClock> clock_;
  cudaEvent_t op_end_ = nullptr;
  std::mutex copy_mutex_;  // guards copies_ and copy_end_
  std::unique_ptr<Staging> copies_;
  cudaEvent_t copy_end_ = nullptr;
  std::mutex mapped_mutex_;
  std::multiset<std::pair<const std::byte*, int64_t>> mapped_;
};

// "GPU-" and 8-4-4-4-12 hex digits.
std::string FormatUuid(const cudaUUID_t& uuid);

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_DEVICE_CONTEXT_H_
