// Faults on demand, and what was called: the emulated device breaks when a test wants it to.
//
// Also by environment, so that a whole server runs with it:
//   KVERN_SIMT_FAULT="kind:N[@function][,...]"  the Nth runtime call (of that function) fails;
//   kinds
//       are out_of_memory, illegal_address, ecc, launch_failure, device_lost, hang
//   KVERN_SIMT_LAUNCH_LOG=file   one line per launch: kernel, blocks, threads
//   KVERN_SIMT_ABORT=0           a kernel bug (simt::Error) becomes a sticky error, not an abort
//   KVERN_SIMT_HANG_SECONDS=n    how long a wait on a hung stream lasts before it aborts (30)
//   KVERN_SIMT_DEVICES=0         no device
#ifndef KVERN_TESTS_SIMT_RUNTIME_FAULTS_H_
#define KVERN_TESTS_SIMT_RUNTIME_FAULTS_H_

#include <cstdint>
#include <map>
#include <string>

namespace simt {

enum class FaultKind {
  kOutOfMemory,     // of that call alone
  kIllegalAddress,  // this and the next three: of every call from then on
  kEcc,
  kLaunchFailure,
  kDeviceLost,
  // The stream of that call (of the first call after it that names a stream) never completes what
  // is queued from then on; queries stay cudaErrorNotReady, waits abort the process in the end.
  kHang,
};

struct InjectedFault {
  FaultKind kind = FaultKind::kOutOfMemory;
  int64_t call = 1;      // 1: the next one
  std::string function;  // counts only calls of it ("cudaMalloc"); empty: all that do work
};

// Thread-safe, all of it.
class Faults {
 public:
  static void Inject(const InjectedFault& fault);
  // What KVERN_SIMT_FAULT holds. False: not of its form, and nothing is injected.
  static bool InjectAll(const std::string& text);
  // The device is as new: no injected faults, no sticky error, nothing queued. Memory stays.
  static void Clear();
  static void SetAbortOnKernelError(bool abort);

  // Since the start of the process: calls that do work on the device, or wait for it (not versions,
  // last errors, the number of devices).
  static int64_t Calls();
  static int64_t Calls(const std::string& function);
};

// Kernels accepted so far; launches are the function "cudaLaunchKernel" of Faults.
int64_t LaunchCount();
// By the kernel's name without its parameters, "?" where the binary has no symbols.
std::map<std::string, int64_t> LaunchCounts();

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_RUNTIME_FAULTS_H_
