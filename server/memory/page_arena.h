// One anonymous mapping, handed out in pages that are zero whenever they change hands.
#ifndef KVERN_SERVER_MEMORY_PAGE_ARENA_H_
#define KVERN_SERVER_MEMORY_PAGE_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/memory/page_map.h"

namespace kvern::memory {

// Thread-safe.
class PageArena {
 public:
  // Lazily touched, kept out of core dumps. Errors: InvalidArgument; ResourceExhausted.
  static absl::StatusOr<std::shared_ptr<PageArena>> Create(int64_t capacity_bytes);
  ~PageArena();
  PageArena(const PageArena&) = delete;
  PageArena& operator=(const PageArena&) = delete;

  // As PageMap::Take; the pages are zero.
  std::vector<PageRun> Take(int64_t piece_pages, int64_t pieces);
  // Zeroes, then frees.
  void Free(std::span<const PageRun> runs);

  std::byte* Data() const { return data_; }
  int64_t PageBytes() const { return page_bytes_; }
  int64_t CapacityBytes() const { return pages_ * page_bytes_; }
  int64_t UsedBytes() const;
  // To try out what freeing would give.
  PageMap Snapshot() const;

 private:
  PageArena(std::byte* data, int64_t pages, int64_t page_bytes)
      : data_(data), pages_(pages), page_bytes_(page_bytes), map_(pages) {}
  std::byte* const data_;
  const int64_t pages_;
  const int64_t page_bytes_;
  mutable absl::Mutex mutex_;
  PageMap map_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_PAGE_ARENA_H_
