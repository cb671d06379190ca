// First fit from either end over an ordered map of gaps.
#include "kernels/cuda/arena.h"

#include <algorithm>
#include <iterator>

#include "kernels/base/status_macros.h"

namespace kvern::cuda {
namespace {

constexpr int64_t kAlign = 256;

int64_t RoundUp(int64_t bytes) { return std::max(kAlign, (bytes + kAlign - 1) / kAlign * kAlign); }

}  // namespace

Arena::Arena(std::byte* base, int64_t bytes) : base_(base), bytes_(bytes / kAlign * kAlign) {
  if (bytes_ > 0) gaps_.emplace(0, bytes_);
}

std::byte* Arena::Allocate(int64_t bytes, End end) {
  if (bytes > bytes_) return nullptr;
  const int64_t want = RoundUp(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto fits = [&](const auto& gap) { return gap.second >= want; };
  if (end == End::kLow) {
    const auto gap = std::find_if(gaps_.begin(), gaps_.end(), fits);
    if (gap == gaps_.end()) return nullptr;
    const auto [offset, length] = *gap;
    gaps_.erase(gap);
    if (length > want) gaps_.emplace(offset + want, length - want);
    return base_ + offset;
  }
  const auto gap = std::find_if(gaps_.rbegin(), gaps_.rend(), fits);
  if (gap == gaps_.rend()) return nullptr;
  const auto [offset, length] = *gap;
  gap->second -= want;
  if (length == want) gaps_.erase(offset);
  return base_ + offset + length - want;
}

void Arena::Free(std::byte* data, int64_t bytes) {
  int64_t offset = data - base_;
  int64_t length = RoundUp(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  auto next = gaps_.lower_bound(offset);
  KVERN_CHECK(next == gaps_.end() || offset + length <= next->first);
  if (next != gaps_.end() && next->first == offset + length) {
    length += next->second;
    next = gaps_.erase(next);
  }
  if (next != gaps_.begin()) {
    const auto previous = std::prev(next);
    KVERN_CHECK(previous->first + previous->second <= offset);
    if (previous->first + previous->second == offset) {
      previous->second += length;
      return;
    }
  }
  gaps_.emplace(offset, length);
}

int64_t Arena::FreeBytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t free = 0;
  for (const auto& [offset, bytes] : gaps_) free += bytes;
  return free;
}

}  // namespace kvern::cuda
