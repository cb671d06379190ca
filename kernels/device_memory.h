// Memory of a backend's device: who owns it, and what is known of the device.
#ifndef KVERN_KERNELS_DEVICE_MEMORY_H_
#define KVERN_KERNELS_DEVICE_MEMORY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/kv_ref.h"
#include "kernels/base/reuse.h"

namespace kvern {

// Bytes of a backend, given back when it dies. Move-only.
class Buffer {
 public:
  using Free = void (*)(void* owner, std::byte* data, int64_t bytes);
  Buffer() = default;
  Buffer(std::byte* data, int64_t bytes, Free free, void* owner)
      : data_(data), bytes_(bytes), free_(free), owner_(owner) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(free_, other.free_);
    std::swap(owner_, other.owner_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) free_(owner_, data_, bytes_);
  }
  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  Free free_ = nullptr;
  void* owner_ = nullptr;
};

// Rows where ops reach them without a copy of their own.
struct StagedRows {
  ScratchVector<KvRef> rows;  // [layers]
  Buffer memory;              // of the copy; empty where none was needed
};

// Memory of another process on the backend's device.
struct DeviceHandle {
  enum class Kind : uint8_t { kCudaIpc, kFile };
  Kind kind = Kind::kCudaIpc;
  std::array<std::byte, 64> ipc = {};  // kCudaIpc: cudaIpcMemHandle_t
  int file = -1;                       // kFile: exported allocation (VMM), borrowed
  std::string device_uuid;             // "GPU-xxxxxxxx-xxxx-...": must be this backend's
  int64_t offset_bytes = 0;            // where the memory begins inside the allocation
  int64_t size_bytes = 0;
};
class DeviceMapping {
 public:
  virtual ~DeviceMapping() = default;  // unmaps
  virtual std::byte* Data() const = 0;
  virtual int64_t SizeBytes() const = 0;
};

struct DeviceFacts {
  std::string name;
  std::string uuid;    // "GPU-xxxxxxxx-xxxx-..."
  std::string driver;  // "13.0"
  int64_t memory_bytes = 0;
  int64_t reserved_bytes = 0;  // by this process, at start
  double busy_seconds = 0;     // of work done, by the device's clock
};

}  // namespace kvern

#endif  // KVERN_KERNELS_DEVICE_MEMORY_H_
