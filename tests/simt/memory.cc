// Device memory is ordinary memory of the process between guard pages, registered here.
#include "simt/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>

#include "simt/check.h"
#include "simt/machine.h"

#if SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace simt {
namespace {

constexpr size_t kAlignment = 256;
// Of a large allocation only the ends are poisoned, where arenas start: the rest is never touched.
constexpr size_t kPoisonedEnd = size_t{4} << 20;
constexpr int kPoison = 0xFF;

struct Entry {
  Allocation allocation;
  std::byte* mapping = nullptr;  // pages between the two guards; null for foreign memory
  size_t mapping_bytes = 0;
};

std::mutex registry_mutex;
std::map<const std::byte*, Entry> registry;  // by begin
uint64_t next_serial = 1;
size_t used_bytes = 0;
int accesses = 0;     // DeviceAccess objects
bool hidden = false;  // there are allocations that fault

size_t PageBytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

size_t RoundUp(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

// `registry_mutex` is held.
Entry* Find(const void* address) {
  auto next = registry.upper_bound(static_cast<const std::byte*>(address));
  if (next == registry.begin()) return nullptr;
  Entry& entry = std::prev(next)->second;
  const Allocation& a = entry.allocation;
  return static_cast<const std::byte*>(address) < a.begin + a.bytes ? &entry : nullptr;
}

Entry* FindExact(const void* begin) {
  const auto found = registry.find(static_cast<const std::byte*>(begin));
  return found == registry.end() ? nullptr : &found->second;
}

void Protect(const Entry& entry, bool visible) {
  if (entry.mapping == nullptr) return;
  mprotect(entry.mapping, entry.mapping_bytes, visible ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void ProtectAll(bool visible) {
  if (visible ? !hidden : !Current().hide_device_memory) return;
  hidden = !visible;
  for (const auto& [begin, entry] : registry) Protect(entry, visible);
}

void Register(const Entry& entry) {
  registry[entry.allocation.begin] = entry;
  if constexpr (kChecking) check::OnAlloc(entry.allocation);
}

}  // namespace

void* DeviceAlloc(size_t bytes) {
  const std::lock_guard lock(registry_mutex);
  if (bytes > Current().device_bytes || used_bytes > Current().device_bytes - bytes) {
    return nullptr;
  }
  const size_t page = PageBytes();
  Entry entry;
  entry.mapping_bytes = RoundUp(RoundUp(bytes, kAlignment), page);
  void* memory = mmap(nullptr, entry.mapping_bytes + 2 * page, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  entry.mapping = static_cast<std::byte*>(memory) + page;
  if (mprotect(entry.mapping, entry.mapping_bytes, PROT_READ | PROT_WRITE) != 0) return nullptr;
  Allocation& allocation = entry.allocation;
  allocation.begin = entry.mapping + entry.mapping_bytes - RoundUp(bytes, kAlignment);
  allocation.bytes = bytes;
  allocation.serial = next_serial++;
  allocation.fd_offset = static_cast<size_t>(allocation.begin - entry.mapping);
  const size_t end = std::min(bytes, kPoisonedEnd);
  std::memset(allocation.begin, kPoison, end);
  std::memset(allocation.begin + bytes - end, kPoison, end);
#if SIMT_ASAN
  ASAN_POISON_MEMORY_REGION(entry.mapping, entry.mapping_bytes);
  ASAN_UNPOISON_MEMORY_REGION(allocation.begin, bytes);
#endif
  used_bytes += bytes;
  Register(entry);
  if (Current().hide_device_memory && accesses == 0) ProtectAll(false);
  return allocation.begin;
}

bool DeviceFree(void* begin) {
  if (begin == nullptr) return true;
  const std::lock_guard no_grid(GridMutex());
  const std::lock_guard lock(registry_mutex);
  Entry* entry = FindExact(begin);
  if (entry == nullptr || entry->allocation.foreign) return false;
  if constexpr (kChecking) check::OnFree(entry->allocation);
  const size_t page = PageBytes();
#if SIMT_ASAN
  ASAN_UNPOISON_MEMORY_REGION(entry->mapping, entry->mapping_bytes);
#endif
  munmap(entry->mapping - page, entry->mapping_bytes + 2 * page);
  if (entry->allocation.fd >= 0) close(entry->allocation.fd);
  used_bytes -= entry->allocation.bytes;
  registry.erase(static_cast<const std::byte*>(begin));
  return true;
}

std::optional<Allocation> Share(void* begin) {
  const std::lock_guard no_grid(GridMutex());
  const DeviceAccess access;
  const std::lock_guard lock(registry_mutex);
  Entry* entry = FindExact(begin);
  if (entry == nullptr || entry->allocation.foreign) return std::nullopt;
  if (entry->allocation.fd >= 0) return entry->allocation;
  const int fd = memfd_create("kvern-simt", MFD_CLOEXEC);
  if (fd < 0) return std::nullopt;
  const size_t bytes = entry->mapping_bytes;
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) {
    close(fd);
    return std::nullopt;
  }
  void* copy = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (copy == MAP_FAILED) {
    close(fd);
    return std::nullopt;
  }
  const Allocation& allocation = entry->allocation;
  std::memcpy(static_cast<std::byte*>(copy) + allocation.fd_offset, allocation.begin,
              allocation.bytes);
  munmap(copy, bytes);
  void* same = mmap(entry->mapping, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  if (same == MAP_FAILED) {
    close(fd);
    return std::nullopt;
  }
  entry->allocation.fd = fd;
  return entry->allocation;
}

void RegisterDevice(void* begin, size_t bytes) {
  const std::lock_guard lock(registry_mutex);
  Entry entry;
  entry.allocation.begin = static_cast<std::byte*>(begin);
  entry.allocation.bytes = bytes;
  entry.allocation.serial = next_serial++;
  entry.allocation.foreign = true;
  Register(entry);
}

void UnregisterDevice(void* begin) {
  const std::lock_guard no_grid(GridMutex());
  const std::lock_guard lock(registry_mutex);
  const Entry* entry = FindExact(begin);
  if (entry == nullptr || !entry->allocation.foreign) return;
  if constexpr (kChecking) check::OnFree(entry->allocation);
  registry.erase(static_cast<const std::byte*>(begin));
}

bool IsDevice(const void* address) { return FindAllocation(address).has_value(); }

std::optional<Allocation> FindAllocation(const void* address) {
  const std::lock_guard lock(registry_mutex);
  const Entry* entry = Find(address);
  return entry == nullptr ? std::nullopt : std::optional(entry->allocation);
}

size_t DeviceBytesUsed() {
  const std::lock_guard lock(registry_mutex);
  return used_bytes;
}

DeviceAccess::DeviceAccess() {
  const std::lock_guard lock(registry_mutex);
  if (++accesses == 1) ProtectAll(true);
}

DeviceAccess::~DeviceAccess() {
  const std::lock_guard lock(registry_mutex);
  if (--accesses == 0) ProtectAll(false);
}

void NoteHostWrite([[maybe_unused]] const void* begin, [[maybe_unused]] size_t bytes) {
  if constexpr (kChecking) check::OnHostWrite(begin, bytes);
}

void NoteDeviceCopy([[maybe_unused]] const void* to, [[maybe_unused]] const void* from,
                    [[maybe_unused]] size_t bytes) {
  if constexpr (kChecking) check::OnDeviceCopy(to, from, bytes);
}

}  // namespace simt
