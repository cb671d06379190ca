// Shadows are mapped without reserve: what no kernel touches costs only addresses.
#include "simt/check/shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>

#include "simt/check.h"

namespace simt::check {
namespace {

// Cells that a grid touched are given back after it only if there are many.
constexpr size_t kKeptBytes = size_t{16} << 20;
constexpr ptrdiff_t kNear = 64 << 10;

std::mutex mutex;
std::map<const std::byte*, std::unique_ptr<Shadow>>& Shadows() {
  static auto* shadows = new std::map<const std::byte*, std::unique_ptr<Shadow>>;
  return *shadows;
}
// Of the running grid; nothing that it holds is freed before the grid ends.
Shadow* recent[4] = {};
unsigned next_recent = 0;

void* Map(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("simt: no memory to check accesses");
    std::abort();
  }
  return memory;
}

// `mutex` is held.
Shadow* Find(const std::byte* address) {
  auto& shadows = Shadows();
  const auto next = shadows.upper_bound(address);
  if (next == shadows.begin()) return nullptr;
  Shadow* shadow = std::prev(next)->second.get();
  return shadow->Holds(address) ? shadow : nullptr;
}

}  // namespace

Shadow::Shadow(const std::byte* begin, size_t bytes)
    : begin_(begin),
      bytes_(bytes),
      cells_(static_cast<Cell*>(Map(bytes * sizeof(Cell)))),
      written_(static_cast<uint8_t*>(Map(bytes))) {}

Shadow::~Shadow() {
  munmap(cells_, bytes_ * sizeof(Cell));
  munmap(written_, bytes_);
}

void Shadow::ForgetWrites() { std::memset(written_, 0, bytes_); }

void Shadow::ForgetAccesses() {
  if (!touched_ || bytes_ * sizeof(Cell) <= kKeptBytes) return;
  madvise(cells_, bytes_ * sizeof(Cell), MADV_DONTNEED);
  touched_ = false;
}

Shadow* FindShadow(const std::byte* address) {
  for (Shadow* shadow : recent) {
    if (shadow != nullptr && shadow->Holds(address)) return shadow;
  }
  const std::lock_guard lock(mutex);
  Shadow* shadow = Find(address);
  if (shadow != nullptr) recent[next_recent++ % std::size(recent)] = shadow;
  return shadow;
}

const Shadow* NearestShadow(const std::byte* address) {
  const std::lock_guard lock(mutex);
  const Shadow* nearest = nullptr;
  ptrdiff_t least = kNear;
  for (const auto& [begin, shadow] : Shadows()) {
    const ptrdiff_t before = begin - address;
    const ptrdiff_t behind = address - (begin + shadow->bytes());
    const ptrdiff_t distance = before > 0 ? before : behind;
    if (distance < 0 || distance >= least) continue;
    least = distance;
    nearest = shadow.get();
  }
  return nearest;
}

void ForgetAccesses() {
  const std::lock_guard lock(mutex);
  for (Shadow*& shadow : recent) shadow = nullptr;
  for (const auto& [begin, shadow] : Shadows()) shadow->ForgetAccesses();
}

void OnAlloc(const Allocation& allocation) {
  const std::lock_guard lock(mutex);
  auto shadow = std::make_unique<Shadow>(allocation.begin, allocation.bytes);
  if (allocation.foreign) shadow->SetAllWritten();
  Shadows()[allocation.begin] = std::move(shadow);
}

void OnFree(const Allocation& allocation) {
  const std::lock_guard lock(mutex);
  for (Shadow*& shadow : recent) shadow = nullptr;
  Shadows().erase(allocation.begin);
}

void OnHostWrite(const void* begin, size_t bytes) {
  const std::lock_guard lock(mutex);
  const auto* address = static_cast<const std::byte*>(begin);
  Shadow* shadow = Find(address);
  if (shadow == nullptr) return;
  const auto offset = static_cast<size_t>(address - shadow->begin());
  std::memset(shadow->written() + offset, 1, std::min(bytes, shadow->bytes() - offset));
}

void OnDeviceCopy(const void* to, const void* from, size_t bytes) {
  const std::lock_guard lock(mutex);
  const auto* target = static_cast<const std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  Shadow* target_shadow = Find(target);
  Shadow* source_shadow = Find(source);
  if (target_shadow == nullptr || source_shadow == nullptr) return;
  const auto target_offset = static_cast<size_t>(target - target_shadow->begin());
  const auto source_offset = static_cast<size_t>(source - source_shadow->begin());
  bytes = std::min(
      {bytes, target_shadow->bytes() - target_offset, source_shadow->bytes() - source_offset});
  if (source_shadow->all_written()) {
    std::memset(target_shadow->written() + target_offset, 1, bytes);
    return;
  }
  std::memmove(target_shadow->written() + target_offset, source_shadow->written() + source_offset,
               bytes);
}

}  // namespace simt::check
