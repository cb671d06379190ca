// What every runtime call goes through: the lock, injected faults, sticky errors, the last error.
#ifndef KVERN_TESTS_SIMT_RUNTIME_RUNTIME_H_
#define KVERN_TESTS_SIMT_RUNTIME_RUNTIME_H_

#include <cuda_runtime_api.h>
#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "simt/runtime/faults.h"
#include "simt/runtime/streams.h"

namespace simt::runtime {

// What KVERN_SIMT_FAULT holds, appended. False: not of its form, nothing appended.
bool ParseFaults(const std::string& text, std::vector<InjectedFault>* faults);

class Runtime {
 public:
  static Runtime& Get();

  // A call that works on the device: body() under the lock, unless a fault, an earlier sticky error
  // or a fork comes first. Its error is the thread's last error from then on.
  template <class Body>
  cudaError_t Call(const char* name, Body&& body) {
    return Remember(CallQuietly(name, std::forward<Body>(body)));
  }
  // The same without a last error: calls of the driver API.
  template <class Body>
  cudaError_t CallQuietly(const char* name, Body&& body) {
    const std::lock_guard lock(mutex_);
    cudaError_t error = Enter(name);
    if (error == cudaSuccess) error = std::forward<Body>(body)();
    return streams_.failure() != cudaSuccess ? streams_.failure() : error;
  }

  // The thread's last error, sticky ones included.
  cudaError_t Peek();
  cudaError_t Take();
  cudaError_t Remember(cudaError_t error);  // cudaSuccess changes nothing

  // The following only inside Call.
  Streams& streams() { return streams_; }
  // Blocks as the real call would: aborts the process when what it waits for hangs.
  void WaitFor(const std::shared_ptr<Mark>& mark);
  void WaitForAll();

  void NoteLaunch(const void* kernel, int64_t blocks, int threads);
  bool abort_on_kernel_error() const { return abort_on_kernel_error_; }
  // Dynamic shared memory that a kernel may have, in bytes.
  std::map<const void*, int>& shared_limits() { return shared_limits_; }

 private:
  friend class ::simt::Faults;
  friend int64_t simt::LaunchCount();
  friend std::map<std::string, int64_t> simt::LaunchCounts();

  Runtime();
  // Counts the call. An error if it must not run.
  cudaError_t Enter(const std::string& name);
  cudaError_t Break(FaultKind kind);
  [[noreturn]] void AbortAfterHang();

  std::mutex mutex_;
  Streams streams_;
  cudaError_t sticky_ = cudaSuccess;
  std::vector<InjectedFault> faults_;
  bool abort_on_kernel_error_ = true;
  int hang_seconds_ = 30;
  pid_t process_ = 0;  // that made the first call
  int64_t calls_ = 0;
  std::map<std::string, int64_t> calls_of_;
  std::map<const void*, int64_t> launches_;
  std::map<const void*, int> shared_limits_;
  std::string launch_log_;
};

}  // namespace simt::runtime

#endif  // KVERN_TESTS_SIMT_RUNTIME_RUNTIME_H_
