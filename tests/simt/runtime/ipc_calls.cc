// Device memory of another process by cudaIpcMemHandle_t. The memory lies in an unnamed shared
// memory object that lives as long as somebody maps it, so a killed process leaves nothing behind.
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>

#include "simt/memory.h"
#include "simt/runtime/runtime.h"

namespace {

using simt::runtime::Runtime;

constexpr uint64_t kMagic = 0x4350494E5245564Bu;  // "KVERNIPC"

// What the handle's 64 bytes hold; never leaves the machine.
struct Handle {
  uint64_t magic = kMagic;
  int64_t process = 0;
  int64_t file = 0;
  // Of the file: its number may mean another one by now.
  uint64_t file_device = 0;
  uint64_t file_inode = 0;
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;
};
static_assert(sizeof(Handle) <= CUDA_IPC_HANDLE_SIZE && std::is_trivially_copyable_v<Handle>);

struct Opened {
  void* base = nullptr;
  size_t bytes = 0;
  int references = 0;
};
using Source = std::tuple<uint64_t, uint64_t, uint64_t>;  // device, inode, offset

std::map<Source, Opened>& AllOpened() {
  static auto* const opened = new std::map<Source, Opened>;
  return *opened;
}

cudaError_t Map(const Handle& handle, Opened* opened) {
  const std::string path =
      "/proc/" + std::to_string(handle.process) + "/fd/" + std::to_string(handle.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return cudaErrorInvalidResourceHandle;  // the process or its memory is gone
  struct stat status = {};
  const bool same =
      fstat(file, &status) == 0 && status.st_dev == handle.file_device &&
      status.st_ino == handle.file_inode &&
      static_cast<uint64_t>(status.st_size) >= handle.offset_bytes + handle.size_bytes;
  void* const base = same ? mmap(nullptr, handle.size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                                 file, static_cast<off_t>(handle.offset_bytes))
                          : MAP_FAILED;
  close(file);
  if (!same) return cudaErrorInvalidResourceHandle;
  if (base == MAP_FAILED) return cudaErrorMapBufferObjectFailed;
  *opened = {base, handle.size_bytes, 0};
  simt::RegisterDevice(base, handle.size_bytes);
  return cudaSuccess;
}

}  // namespace

// Of the whole allocation, wherever in it `device` points.
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* device) {
  return Runtime::Get().Call("cudaIpcGetMemHandle", [&]() -> cudaError_t {
    if (handle == nullptr) return cudaErrorInvalidValue;
    const auto found = simt::FindAllocation(device);
    if (!found || found->foreign) return cudaErrorInvalidValue;
    const auto shared = simt::Share(found->begin);
    struct stat status = {};
    if (!shared || fstat(shared->fd, &status) != 0) return cudaErrorOperatingSystem;
    Handle bytes;
    bytes.process = getpid();
    bytes.file = shared->fd;
    bytes.file_device = status.st_dev;
    bytes.file_inode = status.st_ino;
    bytes.offset_bytes = shared->fd_offset;
    bytes.size_bytes = shared->bytes;
    *handle = {};
    std::memcpy(handle->reserved, &bytes, sizeof(bytes));
    return cudaSuccess;
  });
}

cudaError_t cudaIpcOpenMemHandle(void** device, cudaIpcMemHandle_t handle, unsigned int flags) {
  return Runtime::Get().Call("cudaIpcOpenMemHandle", [&]() -> cudaError_t {
    Handle bytes;
    std::memcpy(&bytes, handle.reserved, sizeof(bytes));
    if (device == nullptr || flags != cudaIpcMemLazyEnablePeerAccess || bytes.magic != kMagic) {
      return cudaErrorInvalidValue;
    }
    // The real runtime refuses handles of the process itself.
    if (bytes.process == getpid()) return cudaErrorDeviceUninitialized;
    const Source source{bytes.file_device, bytes.file_inode, bytes.offset_bytes};
    auto found = AllOpened().find(source);
    if (found == AllOpened().end()) {
      Opened opened;
      const cudaError_t error = Map(bytes, &opened);
      if (error != cudaSuccess) return error;
      found = AllOpened().emplace(source, opened).first;
    }
    ++found->second.references;
    *device = found->second.base;
    return cudaSuccess;
  });
}

cudaError_t cudaIpcCloseMemHandle(void* device) {
  Runtime& runtime = Runtime::Get();
  return runtime.Call("cudaIpcCloseMemHandle", [&]() -> cudaError_t {
    for (auto opened = AllOpened().begin(); opened != AllOpened().end(); ++opened) {
      if (opened->second.base != device) continue;
      if (--opened->second.references > 0) return cudaSuccess;
      runtime.WaitForAll();
      simt::UnregisterDevice(device);
      munmap(device, opened->second.bytes);
      AllOpened().erase(opened);
      return cudaSuccess;
    }
    return cudaErrorInvalidValue;
  });
}
