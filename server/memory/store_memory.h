// The memory under the store's pages: a mapping of the host, or one piece of the backend's device.
#ifndef KVERN_SERVER_MEMORY_STORE_MEMORY_H_
#define KVERN_SERVER_MEMORY_STORE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "server/memory/byte_access.h"

namespace kvern::memory {

// All of it is there from the start; nothing is allocated later. Thread-safe.
class StoreMemory : public ByteAccess {
 public:
  // Addresses for ops of the backend. Host code goes through CopyIn and CopyOut.
  virtual std::byte* Data() const = 0;
  virtual int64_t Bytes() const = 0;  // a multiple of StorePageBytes()
  virtual bool OnDevice() const = 0;
  // Has whole pages read as zero, before somebody gets them. Errors: of the backend, with stops.
  virtual absl::Status Clear(std::byte* at, int64_t bytes) = 0;
  // The content of whole pages is no longer wanted. Never waits, never fails: a device may be lost.
  virtual void Discard(std::byte* at, int64_t bytes) = 0;
};

// The same on both memories, so that a sequence takes as many bytes on each.
int64_t StorePageBytes();

// Lazily touched, kept out of core dumps. Errors, here and below: InvalidArgument for less than one
// page or more than 2^32 - 1; ResourceExhausted.
absl::StatusOr<std::unique_ptr<StoreMemory>> MapHostStore(int64_t capacity_bytes);
// One Allocate of the backend, which lives at least as long as the memory.
absl::StatusOr<std::unique_ptr<StoreMemory>> AllocateDeviceStore(std::shared_ptr<Backend> backend,
                                                                 int64_t capacity_bytes);

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_STORE_MEMORY_H_
