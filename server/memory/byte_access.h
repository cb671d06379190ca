// Bytes at addresses that perhaps only a device can follow, and how the host gets at them.
#ifndef KVERN_SERVER_MEMORY_BYTE_ACCESS_H_
#define KVERN_SERVER_MEMORY_BYTE_ACCESS_H_

#include <cstddef>
#include <span>

#include "absl/status/status.h"

namespace kvern::memory {

// Thread-safe. A copy sees what the ops before it wrote and is complete when it returns. The range
// at `at` lies in memory that the implementer owns; another one is our bug and ends in KVERN_CHECK.
// Errors: of the backend, for memory of its device; host memory has none.
class ByteAccess {
 public:
  virtual ~ByteAccess() = default;
  virtual absl::Status CopyIn(std::span<const std::byte> host, std::byte* at) const = 0;
  virtual absl::Status CopyOut(const std::byte* at, std::span<std::byte> host) const = 0;
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_BYTE_ACCESS_H_
