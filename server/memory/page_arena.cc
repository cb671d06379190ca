// Freed pages go back to the kernel, which zeroes them before they can be read again.
#include "server/memory/page_arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "absl/strings/str_cat.h"

namespace kvern::memory {

absl::StatusOr<std::shared_ptr<PageArena>> PageArena::Create(int64_t capacity_bytes) {
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  const int64_t pages = capacity_bytes / page_bytes;
  // Block ids count pages in 32 bits.
  if (pages < 1 || pages > int64_t{UINT32_MAX}) {
    return absl::InvalidArgumentError(absl::StrCat("store: got a capacity of ", capacity_bytes,
                                                   " bytes, want 1 to ", UINT32_MAX, " pages of ",
                                                   page_bytes));
  }
  void* data = mmap(nullptr, static_cast<size_t>(pages * page_bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat("store: ", pages * page_bytes, " bytes could not be mapped"));
  }
  (void)madvise(data, static_cast<size_t>(pages * page_bytes), MADV_DONTDUMP);
  return std::shared_ptr<PageArena>(
      new PageArena(static_cast<std::byte*>(data), pages, page_bytes));
}

PageArena::~PageArena() { munmap(data_, static_cast<size_t>(CapacityBytes())); }

std::vector<PageRun> PageArena::Take(int64_t piece_pages, int64_t pieces) {
  const absl::MutexLock lock(&mutex_);
  return map_.Take(piece_pages, pieces);
}

void PageArena::Free(std::span<const PageRun> runs) {
  for (const PageRun& run : runs) {
    std::byte* first = data_ + run.first * page_bytes_;
    const auto bytes = static_cast<size_t>(run.count * page_bytes_);
    // Fails on locked memory only.
    if (madvise(first, bytes, MADV_DONTNEED) != 0) std::memset(first, 0, bytes);
  }
  const absl::MutexLock lock(&mutex_);
  for (const PageRun& run : runs) map_.Free(run);
}

int64_t PageArena::UsedBytes() const {
  const absl::MutexLock lock(&mutex_);
  return (pages_ - map_.FreePages()) * page_bytes_;
}

PageMap PageArena::Snapshot() const {
  const absl::MutexLock lock(&mutex_);
  return map_;
}

}  // namespace kvern::memory
