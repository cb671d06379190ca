// Shared memory starts as NaN in every block, and overruns hit zones: by AddressSanitizer and the
// check build at once, else when the block has ended.
#include "simt/arena.h"

#include <algorithm>
#include <cstring>

#include "simt/build.h"

#if SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace simt {
namespace {

constexpr int kPoison = 0xFF;
constexpr int kZone = 0xA5;

}  // namespace

void Arena::Start(size_t dynamic_bytes) {
#if SIMT_ASAN
  ASAN_POISON_MEMORY_REGION(bytes_, kBytes);
#endif
  count_ = 0;
  used_ = 0;
  shared_bytes_ = 0;
  if (dynamic_bytes > 0) Place({nullptr, "dynamic shared memory", dynamic_bytes, 256}, 0);
}

void Arena::Place(const SharedVariable& variable, size_t begin) {
  placed_[count_++] = {variable.tag, variable.name, begin, variable.bytes};
  used_ = begin + variable.bytes + kRedZone;
  shared_bytes_ += variable.bytes;
#if SIMT_ASAN
  ASAN_UNPOISON_MEMORY_REGION(bytes_ + begin, variable.bytes);
#else
  std::memset(bytes_ + begin + variable.bytes, kZone, kRedZone);
#endif
  std::memset(bytes_ + begin, kPoison, variable.bytes);
}

void* Arena::Declare(const SharedVariable& variable, Site site) {
  for (int i = 0; i < count_; ++i) {
    if (placed_[i].tag == variable.tag) return bytes_ + placed_[i].begin;
  }
  size_t statics = variable.bytes;
  for (int i = 0; i < count_; ++i) statics += placed_[i].tag != nullptr ? placed_[i].bytes : 0;
  if (statics > kMaxStaticSharedBytes) {
    Fail(Fault::kResources, site, "more than 48 KiB of static shared memory");
  }
  if (shared_bytes_ + variable.bytes > kMaxSharedBytes) {
    Fail(Fault::kResources, site, "static and dynamic shared memory exceed 227 KiB");
  }
  const size_t alignment = std::max(variable.alignment, size_t{16});
  const size_t begin = (used_ + alignment - 1) / alignment * alignment;
  if (count_ == kMaxVariables || begin + variable.bytes + kRedZone > kBytes) {
    Fail(Fault::kResources, site, "too many shared variables");
  }
  Place(variable, begin);
  return bytes_ + begin;
}

const char* Arena::OverrunVariable() const {
#if !SIMT_ASAN
  for (int i = 0; i < count_; ++i) {
    const std::byte* zone = bytes_ + placed_[i].begin + placed_[i].bytes;
    const auto written = [](std::byte b) { return b != static_cast<std::byte>(kZone); };
    if (std::any_of(zone, zone + kRedZone, written)) return placed_[i].name;
  }
#endif
  return nullptr;
}

const char* Arena::VariableAt(const void* address, size_t bytes) const {
  const size_t offset = OffsetOf(address);
  for (int i = 0; i < count_; ++i) {
    const Placed& placed = placed_[i];
    if (offset >= placed.begin && offset + bytes <= placed.begin + placed.bytes) {
      return placed.name;
    }
  }
  return nullptr;
}

}  // namespace simt
