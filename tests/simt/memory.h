// The memory of the emulated device: where it lies, whose it is, who may touch it.
#ifndef KVERN_TESTS_SIMT_MEMORY_H_
#define KVERN_TESTS_SIMT_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <optional>

namespace simt {

struct Allocation {
  std::byte* begin = nullptr;
  size_t bytes = 0;
  uint64_t serial = 0;   // never reused
  bool foreign = false;  // by RegisterDevice
  // Where the bytes lie in a shared memory object, after Share; -1: private to the process.
  int fd = -1;
  size_t fd_offset = 0;
};

// Aligned to 256 bytes, filled with 0xFF (the first and last 4 MiB; zeros between), ends (rounded
// up to 256) at a page that faults. Null when the capacity of Current() is used up. `bytes` > 0.
void* DeviceAlloc(size_t bytes);
// `begin` is what DeviceAlloc gave, or null. False if it is not. Waits for a running grid.
bool DeviceFree(void* begin);

// Moves an allocation, contents kept and addresses unchanged, into a shared memory object that
// another process can map: by open("/proc/<pid>/fd/<fd>"). The descriptor stays the allocation's.
// Nothing if `begin` is not from DeviceAlloc.
std::optional<Allocation> Share(void* begin);

// Declares a mapping made elsewhere (from another process, or by the virtual memory calls) device
// memory, its contents written; and takes that back.
void RegisterDevice(void* begin, size_t bytes);
void UnregisterDevice(void* begin);

bool IsDevice(const void* address);
std::optional<Allocation> FindAllocation(const void* address);
size_t DeviceBytesUsed();  // by DeviceAlloc; foreign memory does not count

// While one lives, host code may touch device memory though the configuration hides it. RunGrid
// holds one. Copies of the runtime need one.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

// For the check build, which reports kernels that read what nobody wrote: a copy or fill wrote
// these bytes. Nothing for host memory.
void NoteHostWrite(const void* begin, size_t bytes);
// A copy between device addresses: what was never written stays so.
void NoteDeviceCopy(const void* to, const void* from, size_t bytes);

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_MEMORY_H_
