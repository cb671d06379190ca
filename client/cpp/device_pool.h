// A paged pool in memory of the server's GPU that the caller allocated: no byte leaves the device.
#ifndef KVERN_CLIENT_CPP_DEVICE_POOL_H_
#define KVERN_CLIENT_CPP_DEVICE_POOL_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "client/cpp/client.h"

namespace kvern::client {

// Part of an allocation on the GPU, named by exactly one of the two.
struct DeviceRegion {
  std::string ipc_handle = {};   // the 64 bytes of cudaIpcGetMemHandle; a secret
  int file = -1;                 // of cuMemExportToShareableHandle; stays the caller's
  std::string device_uuid = {};  // GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx, the server's
  int64_t offset_bytes = 0;      // where it begins inside the allocation, a multiple of 16
  int64_t size_bytes = 0;
};

// Keeps the pool registered: files over a broker connection that it owns, IPC handles by renewing
// the lease from a thread of its own. It allocates and frees nothing: the memory must stay until
// the pool is gone and every call over it has returned. One thread at a time.
class DevicePool {
 public:
  // `pool` says everything but name and regions. Errors: InvalidArgument unless each region has
  // one handle; of the broker and of RegisterPool.
  static absl::StatusOr<DevicePool> Register(const Client& client, const v1::Pool& pool,
                                             std::span<const DeviceRegion> regions);
  ~DevicePool();  // unregisters
  DevicePool(DevicePool&&) noexcept;
  DevicePool& operator=(DevicePool&&) noexcept;

  // `pools/{pool}`.
  const std::string& Name() const;
  // Not ok after a renewal that failed, until one succeeds; NotFound/POOL_EXPIRED for good.
  absl::Status Renewed() const;

 private:
  struct State;
  explicit DevicePool(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_DEVICE_POOL_H_
