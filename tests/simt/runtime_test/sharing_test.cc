// Device memory between processes: IPC handles, and mappable memory over file descriptors.
#include <cuda.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>

#include "simt/runtime_test/runtime_fixture.h"

namespace simt {
namespace {

constexpr size_t kBytes = size_t{2} << 20;
constexpr int kInts = 1000;

// A forked process that runs `body`; both get an end of a socket.
struct Peer {
  pid_t process = 0;
  int socket = -1;

  explicit Peer(const std::function<bool(int socket)>& body) {
    int ends[2] = {};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) std::abort();
    process = fork();
    if (process == 0) {
      close(ends[0]);
      _exit(body(ends[1]) ? 0 : 1);
    }
    close(ends[1]);
    socket = ends[0];
  }
  ~Peer() { close(socket); }
  int Wait() const {
    int status = 0;
    waitpid(process, &status, 0);
    return status;
  }
};

template <class T>
bool SendValue(int socket, const T& value) {
  return write(socket, &value, sizeof(value)) == sizeof(value);
}
template <class T>
bool ReceiveValue(int socket, T* value) {
  return recv(socket, value, sizeof(*value), MSG_WAITALL) == sizeof(*value);
}

bool SendFile(int socket, int file) {
  char byte = 0;
  iovec data = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &file, sizeof(int));
  return sendmsg(socket, &message, 0) == 1;
}

int ReceiveFile(int socket) {
  char byte = 0;
  iovec data = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (recvmsg(socket, &message, 0) != 1 || CMSG_FIRSTHDR(&message) == nullptr) return -1;
  int file = -1;
  std::memcpy(&file, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
  return file;
}

bool Fill(int* device, int value) {
  const std::vector<int> host(kInts, value);
  return cudaMemcpy(device, host.data(), kInts * sizeof(int), cudaMemcpyHostToDevice) ==
             cudaSuccess &&
         cudaDeviceSynchronize() == cudaSuccess;
}

bool Holds(const int* device, int value) {
  return Read(device, kInts, nullptr) == std::vector<int>(kInts, value);
}

// Allocates, sends the handle, waits for the answer, and checks what the other wrote.
bool ExportByIpc(int socket) {
  void* memory = nullptr;
  cudaIpcMemHandle_t handle;
  char answer = 0;
  if (cudaMalloc(&memory, kBytes) != cudaSuccess || !Fill(static_cast<int*>(memory), 11)) {
    return false;
  }
  if (cudaIpcGetMemHandle(&handle, static_cast<char*>(memory) + 64) != cudaSuccess) return false;
  if (!SendValue(socket, handle) || !ReceiveValue(socket, &answer)) return false;
  return Holds(static_cast<int*>(memory), 12);
}

// A program started anew, since a runtime that was used does not survive fork.
void InFreshProcess(const std::function<bool()>& body) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(_exit(body() ? 0 : 1), testing::ExitedWithCode(0), "");
}

#define KVERN_WANT(condition)                                      \
  do {                                                             \
    if (!(condition)) {                                            \
      std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
      return false;                                                \
    }                                                              \
  } while (false)

TEST(SharedMemory, IsSeenByBothProcessesOfAnIpcHandle) {
  InFreshProcess([] {
    const Peer exporter(ExportByIpc);
    cudaIpcMemHandle_t handle;
    void* memory = nullptr;
    void* again = nullptr;
    KVERN_WANT(ReceiveValue(exporter.socket, &handle));
    KVERN_WANT(cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess) ==
               cudaSuccess);
    KVERN_WANT(cudaIpcOpenMemHandle(&again, handle, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess);
    KVERN_WANT(again == memory && cudaIpcCloseMemHandle(again) == cudaSuccess);
    size_t bytes = 0;
    KVERN_WANT(cuMemGetAddressRange(nullptr, &bytes, reinterpret_cast<CUdeviceptr>(memory)) ==
               CUDA_SUCCESS);
    KVERN_WANT(bytes >= kBytes && Holds(static_cast<int*>(memory), 11));
    KVERN_WANT(LaunchAdd(static_cast<int*>(memory), kInts, 1, nullptr) == cudaSuccess);
    KVERN_WANT(cudaDeviceSynchronize() == cudaSuccess);
    KVERN_WANT(SendValue(exporter.socket, 'x') && exporter.Wait() == 0);
    KVERN_WANT(Holds(static_cast<int*>(memory), 12));
    KVERN_WANT(cudaIpcCloseMemHandle(memory) == cudaSuccess);
    return true;
  });
}

TEST(SharedMemory, OutlivesAKilledExporterForWhoHasItMapped) {
  InFreshProcess([] {
    const Peer exporter(ExportByIpc);
    cudaIpcMemHandle_t handle;
    void* memory = nullptr;
    KVERN_WANT(ReceiveValue(exporter.socket, &handle));
    KVERN_WANT(cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess) ==
               cudaSuccess);
    kill(exporter.process, SIGKILL);
    exporter.Wait();
    KVERN_WANT(Holds(static_cast<int*>(memory), 11));
    KVERN_WANT(cudaIpcCloseMemHandle(memory) == cudaSuccess);
    KVERN_WANT(cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess) ==
               cudaErrorInvalidResourceHandle);
    return true;
  });
}

TEST(SharedMemory, HandlesOfOnesOwnOrOfNobodyAreRefused) {
  InFreshProcess([] {
    void* memory = nullptr;
    void* opened = nullptr;
    cudaIpcMemHandle_t handle = {};
    KVERN_WANT(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess) ==
               cudaErrorInvalidValue);
    KVERN_WANT(cudaMalloc(&memory, 100) == cudaSuccess);
    KVERN_WANT(cudaIpcGetMemHandle(&handle, memory) == cudaSuccess);
    KVERN_WANT(cudaIpcOpenMemHandle(&opened, handle, cudaIpcMemLazyEnablePeerAccess) ==
               cudaErrorDeviceUninitialized);
    KVERN_WANT(cudaIpcGetMemHandle(&handle, &handle) == cudaErrorInvalidValue);
    return true;
  });
}

TEST(SharedMemory, ARuntimeDoesNotSurviveFork) {
  InFreshProcess([] {
    KVERN_WANT(cudaDeviceSynchronize() == cudaSuccess);
    const Peer child([](int) { return cudaDeviceSynchronize() == cudaErrorInitializationError; });
    KVERN_WANT(child.Wait() == 0);
    return true;
  });
}

CUmemAllocationProp ExportableMemory() {
  CUmemAllocationProp properties = {};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0};
  return properties;
}

// Zero if any step fails.
CUdeviceptr MapHandle(CUmemGenericAllocationHandle handle, size_t bytes) {
  CUdeviceptr address = 0;
  const CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, 0},
                                  CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  if (cuMemAddressReserve(&address, bytes, 0, 0, 0) != CUDA_SUCCESS) return 0;
  if (cuMemMap(address, bytes, 0, handle, 0) != CUDA_SUCCESS) return 0;
  return cuMemSetAccess(address, bytes, &access, 1) == CUDA_SUCCESS ? address : 0;
}

bool Unmap(CUdeviceptr address, size_t bytes) {
  return cuMemUnmap(address, bytes) == CUDA_SUCCESS &&
         cuMemAddressFree(address, bytes) == CUDA_SUCCESS;
}

bool ExportByFile(int socket) {
  const CUmemAllocationProp properties = ExportableMemory();
  size_t granularity = 0;
  CUmemGenericAllocationHandle handle = 0;
  int file = -1;
  char answer = 0;
  KVERN_WANT(cuMemGetAllocationGranularity(&granularity, &properties,
                                           CU_MEM_ALLOC_GRANULARITY_MINIMUM) == CUDA_SUCCESS);
  KVERN_WANT(granularity == kBytes);
  KVERN_WANT(cuMemCreate(&handle, kBytes + 1, &properties, 0) == CUDA_ERROR_INVALID_VALUE);
  KVERN_WANT(cuMemCreate(&handle, kBytes, &properties, 0) == CUDA_SUCCESS);
  const CUdeviceptr address = MapHandle(handle, kBytes);
  KVERN_WANT(address % kBytes == 0 && Fill(reinterpret_cast<int*>(address), 21));
  KVERN_WANT(cuMemExportToShareableHandle(&file, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                                          0) == CUDA_SUCCESS);
  KVERN_WANT(SendFile(socket, file) && close(file) == 0);
  KVERN_WANT(cuMemRelease(handle) == CUDA_SUCCESS);
  KVERN_WANT(ReceiveValue(socket, &answer) && Holds(reinterpret_cast<int*>(address), 23));
  return Unmap(address, kBytes);
}

TEST(SharedMemory, IsSeenByBothProcessesOfAFileDescriptor) {
  InFreshProcess([] {
    const Peer exporter(ExportByFile);
    const int file = ReceiveFile(exporter.socket);
    CUmemGenericAllocationHandle handle = 0;
    void* const number = reinterpret_cast<void*>(static_cast<intptr_t>(file));
    KVERN_WANT(cuMemImportFromShareableHandle(
                   &handle, number, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) == CUDA_SUCCESS);
    KVERN_WANT(close(file) == 0 && MapHandle(handle, 2 * kBytes) == 0);
    const CUdeviceptr address = MapHandle(handle, kBytes);
    KVERN_WANT(address != 0 && Holds(reinterpret_cast<int*>(address), 21));
    KVERN_WANT(LaunchAdd(reinterpret_cast<int*>(address), kInts, 2, nullptr) == cudaSuccess);
    KVERN_WANT(cudaDeviceSynchronize() == cudaSuccess);
    KVERN_WANT(SendValue(exporter.socket, 'x') && exporter.Wait() == 0);
    KVERN_WANT(cuMemRelease(handle) == CUDA_SUCCESS && Unmap(address, kBytes));
    return true;
  });
}

TEST(SharedMemory, FilesThatAreNoDeviceMemoryAreRefused) {
  InFreshProcess([] {
    CUmemGenericAllocationHandle handle = 0;
    const int file = memfd_create("other", 0);
    void* const number = reinterpret_cast<void*>(static_cast<intptr_t>(file));
    KVERN_WANT(
        cuMemImportFromShareableHandle(&handle, number, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) ==
        CUDA_ERROR_INVALID_VALUE);
    return true;
  });
}

TEST(SharedMemory, DriverFunctionsAreFoundByNameAndVersion) {
  InFreshProcess([] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    KVERN_WANT(cudaGetDriverEntryPointByVersion("cuMemCreate", &function, 12000, cudaEnableDefault,
                                                &result) == cudaSuccess);
    KVERN_WANT(function == reinterpret_cast<void*>(&cuMemCreate) &&
               result == cudaDriverEntryPointSuccess);
    KVERN_WANT(cudaGetDriverEntryPointByVersion("cuMemCreate", &function, 9000, cudaEnableDefault,
                                                &result) == cudaSuccess);
    KVERN_WANT(function == nullptr && result == cudaDriverEntryPointVersionNotSufficent);
    KVERN_WANT(cudaGetDriverEntryPointByVersion("cuNone", &function, 12000, cudaEnableDefault,
                                                &result) == cudaSuccess);
    KVERN_WANT(function == nullptr && result == cudaDriverEntryPointSymbolNotFound);
    return true;
  });
}

}  // namespace
}  // namespace simt
