// Mapped memory that somebody else owns, shared by leases.
#ifndef KVERN_SERVER_MEMORY_REGION_H_
#define KVERN_SERVER_MEMORY_REGION_H_

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "kernels/device_memory.h"

namespace kvern::memory {

using AttachmentId = std::array<uint8_t, 16>;

// Opens memory of another process on the server's device; Backend::Import says how, and its errors.
// Thread-safe; null where there is nothing to ask.
using ImportDevice =
    std::function<absl::StatusOr<std::unique_ptr<DeviceMapping>>(const DeviceHandle& handle)>;

// `import` of `handle`. Errors: of the import; FailedPrecondition/NO_DEVICE when it is null;
// InvalidArgument/REGION_OUT_OF_BOUNDS when the offset is no multiple of 16 or the size below 1.
absl::StatusOr<std::unique_ptr<DeviceMapping>> OpenOnDevice(const ImportDevice& import,
                                                            const DeviceHandle& handle);
// "GPU-" or "MIG-" and 8-4-4-4-12 hex digits.
bool IsDeviceUuid(absl::string_view text);
inline constexpr size_t kDeviceUuidBytes = 40;
inline constexpr int64_t kDeviceAlignment =
    16;  // of a region's first byte: kernels load 16 at once

// Mapped memory, unmapped when the last holder lets go: a memfd, sealed against shrinking so that a
// client cannot turn a mapped page into a fault, or memory of the server's device.
class Region {
 public:
  // Takes the descriptor. Errors: InvalidArgument unless it is a memfd with F_SEAL_SHRINK and a
  // size > 0; ResourceExhausted when mapping fails.
  static absl::StatusOr<std::shared_ptr<Region>> Map(int fd, uid_t owner);
  static std::shared_ptr<Region> OnDevice(std::unique_ptr<DeviceMapping> mapping, uid_t owner);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // Of a region on the device only ops of the backend may follow the address.
  std::byte* Data() const { return data_; }
  int64_t SizeBytes() const { return size_bytes_; }
  uid_t Owner() const { return owner_; }
  bool OnDevice() const { return mapping_ != nullptr; }

 private:
  Region(std::byte* data, int64_t size_bytes, uid_t owner)
      : data_(data), size_bytes_(size_bytes), owner_(owner) {}
  std::byte* data_;
  int64_t size_bytes_;
  uid_t owner_;
  std::unique_ptr<DeviceMapping> mapping_;  // null: the host's
};

// What the broker received, by attachment id. An entry lives as long as its broker connection.
// Thread-safe.
class AttachmentTable {
 public:
  // A new random id.
  AttachmentId Attach(std::shared_ptr<Region> region, int64_t connection);
  // Errors: NotFound/ATTACHMENT_UNKNOWN (never says more).
  absl::StatusOr<std::shared_ptr<Region>> Find(const AttachmentId& id) const;
  // The broker connection behind an attachment; 0 when unknown.
  int64_t ConnectionOf(const AttachmentId& id) const;
  // Drops all attachments of a connection, then tells `on_close` (pools expire there).
  void Close(int64_t connection);
  void OnClose(std::function<void(int64_t connection)> on_close);
  int64_t Count() const;

 private:
  struct Entry {
    std::shared_ptr<Region> region;
    int64_t connection;
  };
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::function<void(int64_t)> on_close_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_REGION_H_
