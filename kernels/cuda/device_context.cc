// Waits poll events, so that a device that stopped answering costs a bounded time and no thread.
#include "kernels/cuda/device_context.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/status_macros.h"
#include "kernels/cuda/cuda_error.h"

namespace kvern::cuda {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr int64_t kOpRingHalfBytes = int64_t{16} << 20;
constexpr int64_t kCopyRingHalfBytes = int64_t{4} << 20;
constexpr int64_t kMostScratchBytes = int64_t{8} << 30;
// A call that was stopped ends within a second, with a margin for what follows the wait.
constexpr double kStopSeconds = 0.8;
// The oldest devices that the build has code for.
constexpr int kOldestMajor = 8;

// Short waits cost no sleep, long ones no core.
class Pause {
 public:
  void operator()() {
    const Clock::duration waited = Clock::now() - start_;
    if (waited < std::chrono::microseconds(50)) return;
    std::this_thread::sleep_for(waited < std::chrono::milliseconds(2)
                                    ? std::chrono::microseconds(20)
                                    : std::chrono::microseconds(200));
  }

 private:
  const Clock::time_point start_ = Clock::now();
};

absl::Status NoDevice(cudaError_t error) {
  return absl::FailedPreconditionError(absl::StrCat("cuda: ", Describe(error)));
}

}  // namespace

std::string FormatUuid(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (int i = 0; i < 16; ++i) {
    const bool dash = i == 0 || i == 4 || i == 6 || i == 8 || i == 10;
    absl::StrAppendFormat(&text, "%s%02x", dash ? "-" : "",
                          static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text;
}

absl::StatusOr<std::unique_ptr<DeviceContext>> DeviceContext::Open(const DeviceOptions& options) {
  std::unique_ptr<DeviceContext> device(new DeviceContext(options.hang_seconds));
  KVERN_RETURN_IF_ERROR(device->Choose(options.device));
  KVERN_RETURN_IF_ERROR(device->Reserve(options));
  return device;
}

absl::Status DeviceContext::Choose(const std::string& device) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
    return NoDevice(error);
  }
  int index = -1;
  const bool by_index = absl::SimpleAtoi(device, &index);
  if (!by_index && !absl::StartsWith(device, "GPU-")) {
    return absl::InvalidArgumentError(
        absl::StrCat("device: got ", device, ", want an index or GPU-xxxxxxxx-xxxx-..."));
  }
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    cudaDeviceProp properties;
    if (const cudaError_t error = cudaGetDeviceProperties(&properties, ordinal);
        error != cudaSuccess) {
      return NoDevice(error);
    }
    const std::string uuid = FormatUuid(properties.uuid);
    if (by_index ? ordinal != index : uuid != device) continue;
    ordinal_ = ordinal;
    instruction_set_ = absl::StrCat("sm_", properties.major, properties.minor);
    if (properties.major < kOldestMajor) {
      return absl::FailedPreconditionError(absl::StrCat("cuda: got a device of ", instruction_set_,
                                                        ", want sm_", kOldestMajor, "0 or later"));
    }
    facts_.name = properties.name;
    facts_.uuid = uuid;
    facts_.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
    facts_.driver = absl::StrCat(driver / 1000, ".", driver % 1000 / 10);
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("cuda: no device answered: got ", device, " among ", count));
}

absl::Status DeviceContext::Reserve(const DeviceOptions& options) {
  if (const cudaError_t error = cudaSetDevice(ordinal_); error != cudaSuccess) {
    return NoDevice(error);
  }
  int64_t scratch_bytes = options.scratch_bytes;
  if (scratch_bytes <= 0) {
    size_t free = 0;
    size_t total = 0;
    KVERN_RETURN_IF_ERROR(Check(cudaMemGetInfo(&free, &total), "asking for free memory"));
    const int64_t left = std::max<int64_t>(0, static_cast<int64_t>(free) - options.store_bytes);
    scratch_bytes = std::min(kMostScratchBytes, left / 4);
  }
  const int64_t bytes = scratch_bytes + options.store_bytes;
  void* reserved = nullptr;
  KVERN_RETURN_IF_ERROR(Check(cudaMalloc(&reserved, static_cast<size_t>(bytes)),
                              absl::StrCat("reserving ", bytes, " bytes")));
  arena_ = std::make_unique<Arena>(static_cast<std::byte*>(reserved), bytes);
  facts_.reserved_bytes = bytes;
  KVERN_RETURN_IF_ERROR(
      Check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"));
  for (cudaEvent_t* event : {&op_end_, &copy_end_}) {
    KVERN_RETURN_IF_ERROR(
        Check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "making an event"));
  }
  void* word = nullptr;
  KVERN_RETURN_IF_ERROR(
      Check(cudaHostAlloc(&word, sizeof(int32_t), cudaHostAllocMapped | cudaHostAllocPortable),
            "reserving pinned memory"));
  stop_word_ = static_cast<int32_t*>(word);
  *stop_word_ = 0;
  KVERN_ASSIGN_OR_RETURN(staging_, Staging::Make(*this, kOpRingHalfBytes));
  KVERN_ASSIGN_OR_RETURN(copies_, Staging::Make(*this, kCopyRingHalfBytes));
  clock_ = std::make_unique<DeviceClock>(*this);
  return clock_->Open();
}

DeviceContext::~DeviceContext() {
  // A lost device is not touched: calls into its context may never return, and memory that it may
  // still write must not go back to the process. The process is about to end.
  if (stream_ != nullptr) (void)Drain(Ask::kNothing, "closing");
  staging_.reset();
  copies_.reset();
  clock_.reset();
  if (!Health().ok()) return;
  if (stop_word_ != nullptr) cudaFreeHost(stop_word_);
  for (cudaEvent_t event : {op_end_, copy_end_}) {
    if (event != nullptr) cudaEventDestroy(event);
  }
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
  if (arena_ != nullptr) cudaFree(arena_->base());
}

absl::Status DeviceContext::Check(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  if (IsSticky(error)) return Lose(LostStatus(what, Describe(error)));
  cudaGetLastError();  // or the next launch reports it again
  return CallStatus(what, error);
}

absl::Status DeviceContext::Probe(absl::string_view what) {
  KVERN_RETURN_IF_ERROR(Health());
  cudaGetLastError();  // of the call that failed
  const cudaError_t state = cudaStreamQuery(stream_);
  if (state != cudaErrorNotReady) return Check(state, what);
  cudaGetLastError();
  return absl::OkStatus();
}

absl::Status DeviceContext::Lose(absl::Status status) {
  // Never freed: Health reads it without a lock.
  const auto* lost = new absl::Status(std::move(status));
  const absl::Status* none = nullptr;
  if (!lost_.compare_exchange_strong(none, lost, std::memory_order_acq_rel)) delete lost;
  return Health();
}

absl::Status DeviceContext::Wait(cudaEvent_t event, Ask ask, absl::string_view what) {
  absl::Status stopped;
  Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(Seconds(hang_seconds_));
  for (Pause pause;; pause()) {
    KVERN_RETURN_IF_ERROR(Health());
    const cudaError_t state = cudaEventQuery(event);
    if (state == cudaSuccess) {
      if (stopped.ok() || ask == Ask::kHurry) return absl::OkStatus();
      std::atomic_ref(*stop_word_).store(0);
      return stopped;
    }
    if (state != cudaErrorNotReady) return Check(state, what);
    cudaGetLastError();  // or the next launch reports it
    const Clock::time_point now = Clock::now();
    if (now > end) {
      return Lose(LostStatus(what, "the device did not finish in time"));
    }
    if (ask == Ask::kNothing || !stopped.ok()) continue;
    stopped = AskBound();
    if (stopped.ok()) continue;
    if (ask == Ask::kBoundCheck) std::atomic_ref(*stop_word_).store(1);
    end = std::min(end, now + std::chrono::duration_cast<Clock::duration>(Seconds(kStopSeconds)));
  }
}

absl::Status DeviceContext::AwaitEnd(cudaEvent_t end, Ask ask, absl::string_view what) {
  KVERN_RETURN_IF_ERROR(Check(cudaEventRecord(end, stream_), what));
  return Wait(end, ask, what);
}

absl::Status DeviceContext::Drain(Ask ask, absl::string_view what) {
  KVERN_RETURN_IF_ERROR(Enter());
  if (ask == Ask::kBoundCheck) return AwaitEnd(op_end_, ask, what);
  const std::lock_guard<std::mutex> lock(copy_mutex_);
  return AwaitEnd(copy_end_, ask, what);
}

absl::Status DeviceContext::Enter() {
  KVERN_RETURN_IF_ERROR(Health());
  return Check(cudaSetDevice(ordinal_), "entering the device");
}

bool DeviceContext::Reaches(const void* address) {
  if (arena_->Contains(address)) return true;
  {
    const std::lock_guard<std::mutex> lock(mapped_mutex_);
    for (const auto& [data, bytes] : mapped_) {
      if (address >= data && address < data + bytes) return true;
    }
  }
  if (address == nullptr || !Health().ok()) return false;
  cudaPointerAttributes attributes;
  if (cudaPointerGetAttributes(&attributes, address) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

void DeviceContext::Adopt(const std::byte* data, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mapped_mutex_);
  mapped_.emplace(data, bytes);
}

void DeviceContext::Forget(const std::byte* data, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(mapped_mutex_);
  const auto mapping = mapped_.find({data, bytes});
  if (mapping != mapped_.end()) mapped_.erase(mapping);
}

absl::Status DeviceContext::CopyIn(std::span<const std::byte> host, std::byte* device) {
  KVERN_RETURN_IF_ERROR(Enter());
  const Ask ask = CopyAsk();
  const std::lock_guard<std::mutex> lock(copy_mutex_);
  KVERN_RETURN_IF_ERROR(copies_->Upload(
      device, {.bytes = 1, .count = static_cast<int64_t>(host.size())},
      [&](int64_t first, int64_t count, std::byte* to) {
        std::memcpy(to, host.data() + first, static_cast<size_t>(count));
      },
      ask));
  return AwaitEnd(copy_end_, ask, "a copy to the device");
}

absl::Status DeviceContext::CopyOut(const std::byte* device, std::span<std::byte> host) {
  KVERN_RETURN_IF_ERROR(Enter());
  const Ask ask = CopyAsk();
  const std::lock_guard<std::mutex> lock(copy_mutex_);
  absl::Status status = copies_->Download(
      device, {.bytes = 1, .count = static_cast<int64_t>(host.size())},
      [&](int64_t first, int64_t count, const std::byte* from) {
        std::memcpy(host.data() + first, from, static_cast<size_t>(count));
      },
      ask);
  if (status.ok()) status = copies_->Finish(ask);
  copies_->Abandon();
  return status;
}

absl::Status DeviceContext::Zero(std::byte* device, int64_t bytes) {
  if (bytes == 0) return Health();
  KVERN_RETURN_IF_ERROR(Enter());
  const std::lock_guard<std::mutex> lock(copy_mutex_);
  KVERN_RETURN_IF_ERROR(
      Check(cudaMemsetAsync(device, 0, static_cast<size_t>(bytes), stream_), "zeroing memory"));
  return AwaitEnd(copy_end_, CopyAsk(), "zeroing memory");
}

DeviceFacts DeviceContext::Facts() const {
  DeviceFacts facts = facts_;
  facts.busy_seconds = clock_->BusySeconds();
  return facts;
}

}  // namespace kvern::cuda
