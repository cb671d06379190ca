// Pages are wiped outside the lock: a device may take its time.
#include "server/memory/page_arena.h"

#include "kernels/base/status_macros.h"

namespace kvern::memory {

std::vector<PageRun> PageArena::Take(int64_t piece_pages, int64_t pieces) {
  const absl::MutexLock lock(&mutex_);
  return map_.Take(piece_pages, pieces);
}

absl::Status PageArena::Clear(std::span<const PageRun> runs) {
  for (const PageRun& run : runs) {
    KVERN_RETURN_IF_ERROR(memory_->Clear(Page(run.first), run.count * page_bytes_));
  }
  return absl::OkStatus();
}

void PageArena::Free(std::span<const PageRun> runs) {
  for (const PageRun& run : runs) memory_->Discard(Page(run.first), run.count * page_bytes_);
  const absl::MutexLock lock(&mutex_);
  for (const PageRun& run : runs) map_.Free(run);
}

int64_t PageArena::UsedBytes() const {
  const absl::MutexLock lock(&mutex_);
  return memory_->Bytes() - map_.FreePages() * page_bytes_;
}

PageMap PageArena::Snapshot() const {
  const absl::MutexLock lock(&mutex_);
  return map_;
}

}  // namespace kvern::memory
