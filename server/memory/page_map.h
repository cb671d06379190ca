// Which pages of a fixed range are free.
#ifndef KVERN_SERVER_MEMORY_PAGE_MAP_H_
#define KVERN_SERVER_MEMORY_PAGE_MAP_H_

#include <cstdint>
#include <vector>

#include "absl/container/btree_map.h"

namespace kvern::memory {

// Pages [first, first + count).
struct PageRun {
  int64_t first = 0;
  int64_t count = 0;
};

// Bookkeeping only: knows no memory. Copyable, so that a caller can try things out on a copy. Not
// thread-safe.
class PageMap {
 public:
  explicit PageMap(int64_t pages);

  // Whether `pieces` runs of `piece_pages` pages each are free.
  bool Fits(int64_t piece_pages, int64_t pieces) const;
  // Takes them, first fit from low addresses, neighbours as one run; each run is a multiple of
  // `piece_pages`. Empty if they do not fit; nothing changes then.
  std::vector<PageRun> Take(int64_t piece_pages, int64_t pieces);
  // Gives back what was taken.
  void Free(const PageRun& run);

  int64_t FreePages() const { return free_pages_; }

 private:
  absl::btree_map<int64_t, int64_t> free_;  // first page -> pages; never two that touch
  int64_t free_pages_;
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_PAGE_MAP_H_
