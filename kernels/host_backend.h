// What backends on the host have in common: their memory is the host's, and their clock the wall.
#ifndef KVERN_KERNELS_HOST_BACKEND_H_
#define KVERN_KERNELS_HOST_BACKEND_H_

#include <chrono>
#include <memory>
#include <optional>

#include "kernels/backend.h"

namespace kvern {

class HostBackend : public Backend {
 public:
  // Its threads share the heads of one sequence already.
  bool Batches() const final { return false; }
  absl::Status Finish() final { return absl::OkStatus(); }
  absl::StatusOr<int64_t> Lap() final;

  absl::StatusOr<Buffer> Allocate(int64_t bytes) final;
  absl::Status CopyIn(std::span<const std::byte> host, std::byte* device) final;
  absl::Status CopyOut(const std::byte* device, std::span<std::byte> host) final;
  absl::Status Zero(std::byte* device, int64_t bytes) final;
  absl::StatusOr<StagedRows> Stage(LayerRefs rows) final;
  absl::StatusOr<std::unique_ptr<DeviceMapping>> Import(const DeviceHandle& handle) final;
  absl::Status Health() const final { return absl::OkStatus(); }
  std::optional<DeviceFacts> Device() const final { return std::nullopt; }

 private:
  std::chrono::steady_clock::time_point last_lap_ = std::chrono::steady_clock::now();
};

}  // namespace kvern

#endif  // KVERN_KERNELS_HOST_BACKEND_H_
