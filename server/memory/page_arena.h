// The store's memory, handed out in pages that are zero whenever they change hands.
#ifndef KVERN_SERVER_MEMORY_PAGE_ARENA_H_
#define KVERN_SERVER_MEMORY_PAGE_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "server/memory/page_map.h"
#include "server/memory/store_memory.h"

namespace kvern::memory {

// Thread-safe.
class PageArena {
 public:
  explicit PageArena(std::unique_ptr<StoreMemory> memory)
      : memory_(std::move(memory)),
        page_bytes_(StorePageBytes()),
        map_(memory_->Bytes() / page_bytes_) {}
  PageArena(const PageArena&) = delete;
  PageArena& operator=(const PageArena&) = delete;

  // As PageMap::Take. The pages are zero after Clear.
  std::vector<PageRun> Take(int64_t piece_pages, int64_t pieces);
  // May wait for a device. Errors: of the backend; the pages then only go back.
  absl::Status Clear(std::span<const PageRun> runs);
  // Never waits.
  void Free(std::span<const PageRun> runs);

  const StoreMemory& Memory() const { return *memory_; }
  std::byte* Page(int64_t page) const { return memory_->Data() + page * page_bytes_; }
  int64_t PageBytes() const { return page_bytes_; }
  int64_t CapacityBytes() const { return memory_->Bytes(); }
  int64_t UsedBytes() const;
  // To try out what freeing would give.
  PageMap Snapshot() const;

 private:
  const std::unique_ptr<StoreMemory> memory_;
  const int64_t page_bytes_;
  mutable absl::Mutex mutex_;
  PageMap map_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_PAGE_ARENA_H_
