// A sealed memfd becomes a shared mapping, a device's handle what the backend makes of it; random
// ids stand for them until their connection ends.
#include "server/memory/region.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/memory/unique_fd.h"

namespace kvern::memory {
namespace {

std::string KeyOf(const AttachmentId& id) { return std::string(id.begin(), id.end()); }

AttachmentId RandomId() {
  AttachmentId id;
  ssize_t filled = -1;
  do {
    filled = getrandom(id.data(), id.size(), 0);
  } while (filled < 0 && errno == EINTR);
  KVERN_CHECK(filled == static_cast<ssize_t>(id.size()));
  return id;
}

// The size of a descriptor whose pages can be mapped without ever faulting for the client's doing.
absl::StatusOr<int64_t> MappableBytes(int fd) {
  // Seals first: unlike fstat, asking for them never reaches a file system of the client's.
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) {
    return absl::InvalidArgumentError(
        "attachment: got a descriptor without seals, want a memfd made with MFD_ALLOW_SEALING");
  }
  if ((seals & F_SEAL_SHRINK) == 0) {
    return absl::InvalidArgumentError(
        "attachment: got a memfd that can shrink, want it sealed with F_SEAL_SHRINK");
  }
  struct statfs file_system;
  struct stat file;
  if (fstatfs(fd, &file_system) != 0 || fstat(fd, &file) != 0) {
    return absl::InvalidArgumentError("attachment: its size cannot be read, want a memfd");
  }
  // A punched hole of a huge-page object faults when the reserve of huge pages is gone.
  if (file_system.f_type == HUGETLBFS_MAGIC) {
    return absl::InvalidArgumentError(
        "attachment: got a memfd made with MFD_HUGETLB, want one of ordinary pages");
  }
  if (file.st_size <= 0) {
    return absl::InvalidArgumentError("attachment: got a memfd of 0 bytes, want at least 1");
  }
  return int64_t{file.st_size};
}

}  // namespace

absl::StatusOr<std::shared_ptr<Region>> Region::Map(int fd, uid_t owner) {
  const UniqueFd descriptor(fd);
  KVERN_ASSIGN_OR_RETURN(const int64_t size_bytes, MappableBytes(fd));
  void* data =
      mmap(nullptr, static_cast<size_t>(size_bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    if (errno == EACCES || errno == EPERM) {
      return absl::InvalidArgumentError(
          "attachment: got a memfd that cannot be written, want one without write seals");
    }
    return absl::ResourceExhaustedError(
        absl::StrCat("attachment: ", size_bytes, " bytes could not be mapped"));
  }
  // KV bytes are user data: kept out of core dumps where the kernel can.
  (void)madvise(data, static_cast<size_t>(size_bytes), MADV_DONTDUMP);
  return std::shared_ptr<Region>(new Region(static_cast<std::byte*>(data), size_bytes, owner));
}

std::shared_ptr<Region> Region::OnDevice(std::unique_ptr<DeviceMapping> mapping, uid_t owner) {
  std::shared_ptr<Region> region(new Region(mapping->Data(), mapping->SizeBytes(), owner));
  region->mapping_ = std::move(mapping);
  return region;
}

Region::~Region() {
  if (!OnDevice()) munmap(data_, static_cast<size_t>(size_bytes_));
}

bool IsDeviceUuid(absl::string_view text) {
  constexpr absl::string_view kForm = "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
  static_assert(kForm.size() == kDeviceUuidBytes);
  if (text.size() != kForm.size()) return false;
  if (!absl::StartsWith(text, "GPU-") && !absl::StartsWith(text, "MIG-")) return false;
  for (size_t i = 4; i < kForm.size(); ++i) {
    const bool fits = kForm[i] == 'x' ? absl::ascii_isxdigit(static_cast<unsigned char>(text[i]))
                                      : text[i] == '-';
    if (!fits) return false;
  }
  return true;
}

absl::StatusOr<std::unique_ptr<DeviceMapping>> OpenOnDevice(const ImportDevice& import,
                                                            const DeviceHandle& handle) {
  if (import == nullptr) {
    return WithReason(absl::FailedPreconditionError(
                          "device memory: got some, want host memory on a server without a device"),
                      "NO_DEVICE");
  }
  if (handle.size_bytes < 1 || handle.offset_bytes < 0 ||
      handle.offset_bytes % kDeviceAlignment != 0) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrCat(
            "device memory: got ", handle.size_bytes, " bytes at offset ", handle.offset_bytes,
            ", want 1 byte or more at a multiple of ", kDeviceAlignment)),
        "REGION_OUT_OF_BOUNDS");
  }
  return import(handle);
}

AttachmentId AttachmentTable::Attach(std::shared_ptr<Region> region, int64_t connection) {
  const AttachmentId id = RandomId();
  const absl::MutexLock lock(&mutex_);
  entries_.insert_or_assign(KeyOf(id), Entry{std::move(region), connection});
  return id;
}

absl::StatusOr<std::shared_ptr<Region>> AttachmentTable::Find(const AttachmentId& id) const {
  const absl::MutexLock lock(&mutex_);
  // The hash is seeded and the ids are random: the time of a miss says nothing about other ids.
  const auto entry = entries_.find(KeyOf(id));
  if (entry == entries_.end()) {
    return WithReason(absl::NotFoundError("attachment: got an unknown id, want one that the handle "
                                          "broker answered on a connection that is still open"),
                      "ATTACHMENT_UNKNOWN");
  }
  return entry->second.region;
}

int64_t AttachmentTable::ConnectionOf(const AttachmentId& id) const {
  const absl::MutexLock lock(&mutex_);
  const auto entry = entries_.find(KeyOf(id));
  return entry == entries_.end() ? 0 : entry->second.connection;
}

void AttachmentTable::Close(int64_t connection) {
  std::function<void(int64_t)> on_close;
  std::vector<std::shared_ptr<Region>> ended;  // unmapped outside the lock: a device takes its time
  {
    const absl::MutexLock lock(&mutex_);
    absl::erase_if(entries_, [&](auto& entry) {
      if (entry.second.connection != connection) return false;
      ended.push_back(std::move(entry.second.region));
      return true;
    });
    on_close = on_close_;
  }
  ended.clear();  // before the listener says that the connection is over
  // Outside the lock: the listener takes locks of its own and may look attachments up.
  if (on_close) on_close(connection);
}

void AttachmentTable::OnClose(std::function<void(int64_t connection)> on_close) {
  const absl::MutexLock lock(&mutex_);
  on_close_ = std::move(on_close);
}

int64_t AttachmentTable::Count() const {
  const absl::MutexLock lock(&mutex_);
  return static_cast<int64_t>(entries_.size());
}

}  // namespace kvern::memory
