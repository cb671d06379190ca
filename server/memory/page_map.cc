// A sorted map of free runs: taking splits from the front, freeing joins neighbours.
#include "server/memory/page_map.h"

#include <algorithm>
#include <iterator>

#include "kernels/base/status_macros.h"

namespace kvern::memory {

PageMap::PageMap(int64_t pages) : free_pages_(pages) {
  if (pages > 0) free_.emplace(0, pages);
}

bool PageMap::Fits(int64_t piece_pages, int64_t pieces) const {
  // Division instead of a product: both numbers come from requests.
  if (pieces > free_pages_ / piece_pages) return false;
  int64_t found = 0;
  for (const auto& [first, count] : free_) {
    found += count / piece_pages;
    if (found >= pieces) return true;
  }
  return found >= pieces;
}

std::vector<PageRun> PageMap::Take(int64_t piece_pages, int64_t pieces) {
  std::vector<PageRun> taken;
  if (!Fits(piece_pages, pieces)) return taken;
  for (auto run = free_.begin(); pieces > 0;) {
    const auto [first, count] = *run;
    const int64_t here = std::min(pieces, count / piece_pages);
    if (here == 0) {
      ++run;
      continue;
    }
    const int64_t pages = here * piece_pages;
    taken.push_back({first, pages});
    pieces -= here;
    free_pages_ -= pages;
    run = free_.erase(run);
    if (pages < count) run = std::next(free_.emplace_hint(run, first + pages, count - pages));
  }
  return taken;
}

void PageMap::Free(const PageRun& run) {
  PageRun joined = run;
  auto next = free_.lower_bound(run.first);
  KVERN_CHECK(next == free_.end() || run.first + run.count <= next->first);
  if (next != free_.end() && next->first == run.first + run.count) {
    joined.count += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    KVERN_CHECK(before->first + before->second <= run.first);
    if (before->first + before->second == run.first) {
      joined.first = before->first;
      joined.count += before->second;
      free_.erase(before);
    }
  }
  free_.emplace(joined.first, joined.count);
  free_pages_ += run.count;
}

}  // namespace kvern::memory
