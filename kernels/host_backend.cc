// Plain memory: nothing to move, nothing to wait for.
#include "kernels/host_backend.h"

#include <cstring>
#include <memory>
#include <new>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/reuse.h"

namespace kvern {

absl::StatusOr<int64_t> HostBackend::Lap() {
  const auto now = std::chrono::steady_clock::now();
  const auto lap = std::chrono::duration_cast<std::chrono::microseconds>(now - last_lap_);
  last_lap_ = now;
  return int64_t{lap.count()};
}

namespace {

// Scratch of a call that comes again and again. Not zeroed: its user writes before it reads.
struct Block final : Recycled<Block> {
  struct Byte {
    Byte() {}  // NOLINT(modernize-use-equals-default): defaulted, it would be zeroed
    std::byte value;
  };
  ScratchVector<Byte> bytes;
};

absl::StatusOr<Buffer> AllocateBlock(int64_t bytes) {
  auto block = std::make_unique<Block>();
  block->bytes.resize(static_cast<size_t>(bytes));
  std::byte* const data = &block->bytes.data()->value;
  const auto free = [](void* owner, std::byte*, int64_t) { delete static_cast<Block*>(owner); };
  return Buffer(data, bytes, free, block.release());
}

}  // namespace

absl::StatusOr<Buffer> HostBackend::Allocate(int64_t bytes) {
  if (bytes == 0) return Buffer();
  if (static_cast<size_t>(bytes) <= kMostSpareBytes) return AllocateBlock(bytes);
  auto* data = new (std::nothrow) std::byte[static_cast<size_t>(bytes)];
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("scratch: got no memory for ", bytes, " bytes, want more of it"));
  }
  return Buffer(
      data, bytes, [](void*, std::byte* memory, int64_t) { delete[] memory; }, nullptr);
}

absl::Status HostBackend::CopyIn(std::span<const std::byte> host, std::byte* device) {
  if (!host.empty()) std::memcpy(device, host.data(), host.size());
  return absl::OkStatus();
}

absl::Status HostBackend::CopyOut(const std::byte* device, std::span<std::byte> host) {
  if (!host.empty()) std::memcpy(host.data(), device, host.size());
  return absl::OkStatus();
}

absl::Status HostBackend::Zero(std::byte* device, int64_t bytes) {
  if (bytes > 0) std::memset(device, 0, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

absl::StatusOr<StagedRows> HostBackend::Stage(LayerRefs rows) {
  return StagedRows{{rows.begin(), rows.end()}, {}};
}

absl::StatusOr<std::unique_ptr<DeviceMapping>> HostBackend::Import(const DeviceHandle&) {
  return WithReason(absl::FailedPreconditionError(absl::StrCat(
                        "region: got device memory on the ", Name(),
                        " backend, want host memory, or kvernd on that device (--backend cuda)")),
                    "NO_DEVICE");
}

}  // namespace kvern
