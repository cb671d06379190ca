// Host pages are zeroed by the kernel when they are freed; those of a device when they are taken:
// freeing then asks nothing of a device that is busy or lost.
#include "server/memory/store_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace kvern::memory {
namespace {

bool Holds(const StoreMemory& memory, const std::byte* at, int64_t bytes) {
  const int64_t offset = at - memory.Data();
  return bytes == 0 ||
         (offset >= 0 && offset <= memory.Bytes() && bytes <= memory.Bytes() - offset);
}

class HostStore final : public StoreMemory {
 public:
  HostStore(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  ~HostStore() override { munmap(data_, static_cast<size_t>(bytes_)); }

  std::byte* Data() const override { return data_; }
  int64_t Bytes() const override { return bytes_; }
  bool OnDevice() const override { return false; }
  absl::Status Clear(std::byte*, int64_t) override { return absl::OkStatus(); }
  void Discard(std::byte* at, int64_t bytes) override {
    const auto size = static_cast<size_t>(bytes);
    // Fails on locked memory only.
    if (madvise(at, size, MADV_DONTNEED) != 0) std::memset(at, 0, size);
  }
  absl::Status CopyIn(std::span<const std::byte> host, std::byte* at) const override {
    KVERN_CHECK(Holds(*this, at, std::ssize(host)));
    if (!host.empty()) std::memcpy(at, host.data(), host.size());
    return absl::OkStatus();
  }
  absl::Status CopyOut(const std::byte* at, std::span<std::byte> host) const override {
    KVERN_CHECK(Holds(*this, at, std::ssize(host)));
    if (!host.empty()) std::memcpy(host.data(), at, host.size());
    return absl::OkStatus();
  }

 private:
  std::byte* const data_;
  const int64_t bytes_;
};

class DeviceStore final : public StoreMemory {
 public:
  DeviceStore(std::shared_ptr<Backend> backend, Buffer buffer)
      : backend_(std::move(backend)), buffer_(std::move(buffer)) {}

  std::byte* Data() const override { return buffer_.data(); }
  int64_t Bytes() const override { return buffer_.bytes(); }
  bool OnDevice() const override { return true; }
  absl::Status Clear(std::byte* at, int64_t bytes) override { return backend_->Zero(at, bytes); }
  void Discard(std::byte*, int64_t) override {}
  absl::Status CopyIn(std::span<const std::byte> host, std::byte* at) const override {
    KVERN_CHECK(Holds(*this, at, std::ssize(host)));
    return host.empty() ? absl::OkStatus() : backend_->CopyIn(host, at);
  }
  absl::Status CopyOut(const std::byte* at, std::span<std::byte> host) const override {
    KVERN_CHECK(Holds(*this, at, std::ssize(host)));
    return host.empty() ? absl::OkStatus() : backend_->CopyOut(at, host);
  }

 private:
  const std::shared_ptr<Backend> backend_;  // before the buffer: the memory is its own
  const Buffer buffer_;
};

// Whole pages of a capacity. Block ids count pages in 32 bits.
absl::StatusOr<int64_t> WholePages(int64_t capacity_bytes) {
  const int64_t pages = capacity_bytes / StorePageBytes();
  if (pages >= 1 && pages <= int64_t{UINT32_MAX}) return pages * StorePageBytes();
  return absl::InvalidArgumentError(absl::StrCat("store: got a capacity of ", capacity_bytes,
                                                 " bytes, want 1 to ", UINT32_MAX, " pages of ",
                                                 StorePageBytes()));
}

}  // namespace

int64_t StorePageBytes() {
  static const int64_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

absl::StatusOr<std::unique_ptr<StoreMemory>> MapHostStore(int64_t capacity_bytes) {
  KVERN_ASSIGN_OR_RETURN(const int64_t bytes, WholePages(capacity_bytes));
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("store: ", bytes, " bytes could not be mapped"));
  }
  (void)madvise(data, static_cast<size_t>(bytes), MADV_DONTDUMP);
  // A fault per 2 MiB instead of one per 4 KiB of what is uploaded, where the kernel grants it.
  (void)madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return std::unique_ptr<StoreMemory>(
      std::make_unique<HostStore>(static_cast<std::byte*>(data), bytes));
}

absl::StatusOr<std::unique_ptr<StoreMemory>> AllocateDeviceStore(std::shared_ptr<Backend> backend,
                                                                 int64_t capacity_bytes) {
  KVERN_ASSIGN_OR_RETURN(const int64_t bytes, WholePages(capacity_bytes));
  KVERN_ASSIGN_OR_RETURN(Buffer buffer, backend->Allocate(bytes));
  return std::unique_ptr<StoreMemory>(
      std::make_unique<DeviceStore>(std::move(backend), std::move(buffer)));
}

}  // namespace kvern::memory
