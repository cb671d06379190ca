// Counts, breaks and reports runtime calls.
#include "simt/runtime/runtime.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "simt/runtime/symbols.h"

namespace simt::runtime {
namespace {

thread_local cudaError_t last_error = cudaSuccess;

std::string Environment(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

[[noreturn]] void Die(const std::string& text) {
  std::fprintf(stderr, "simt: %s\n", text.c_str());
  std::abort();
}

}  // namespace

Runtime& Runtime::Get() {
  static Runtime* const runtime = new Runtime;  // outlives static destructors that free memory
  return *runtime;
}

Runtime::Runtime() : launch_log_(Environment("KVERN_SIMT_LAUNCH_LOG")) {
  abort_on_kernel_error_ = Environment("KVERN_SIMT_ABORT") != "0";
  const std::string seconds = Environment("KVERN_SIMT_HANG_SECONDS");
  if (!seconds.empty()) hang_seconds_ = std::atoi(seconds.c_str());
  const std::string faults = Environment("KVERN_SIMT_FAULT");
  if (!faults.empty() && !ParseFaults(faults, &faults_)) {
    Die("KVERN_SIMT_FAULT got '" + faults + "', want kind:N[@function][,...]");
  }
}

cudaError_t Runtime::Enter(const std::string& name) {
  const pid_t process = getpid();
  if (process_ == 0) process_ = process;
  if (process_ != process) return cudaErrorInitializationError;  // a context does not survive fork
  ++calls_;
  ++calls_of_[name];
  cudaError_t error = cudaSuccess;
  std::erase_if(faults_, [&](InjectedFault& fault) {
    if (!fault.function.empty() && fault.function != name) return false;
    if (--fault.call > 0) return false;
    error = Break(fault.kind);
    return true;
  });
  if (sticky_ == cudaSuccess) sticky_ = streams_.failure();
  if (sticky_ != cudaSuccess) return sticky_;
  if (error == cudaSuccess) streams_.Stir();
  return error;
}

cudaError_t Runtime::Break(FaultKind kind) {
  switch (kind) {
    case FaultKind::kOutOfMemory:
      return cudaErrorMemoryAllocation;
    case FaultKind::kIllegalAddress:
      return sticky_ = cudaErrorIllegalAddress;
    case FaultKind::kEcc:
      return sticky_ = cudaErrorECCUncorrectable;
    case FaultKind::kLaunchFailure:
      return sticky_ = cudaErrorLaunchFailure;
    case FaultKind::kDeviceLost:
      return sticky_ = cudaErrorDevicesUnavailable;
    case FaultKind::kHang:
      streams_.HangNext();
      return cudaSuccess;
  }
  return cudaSuccess;
}

cudaError_t Runtime::Remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t Runtime::Peek() {
  const std::lock_guard lock(mutex_);
  if (sticky_ == cudaSuccess) sticky_ = streams_.failure();
  return sticky_ != cudaSuccess ? sticky_ : last_error;
}

cudaError_t Runtime::Take() {
  const cudaError_t error = Peek();
  last_error = cudaSuccess;
  return error;
}

void Runtime::WaitFor(const std::shared_ptr<Mark>& mark) {
  if (!streams_.RunTo(mark)) AbortAfterHang();
}

void Runtime::WaitForAll() {
  if (!streams_.RunAll()) AbortAfterHang();
}

// The lock is free meanwhile: a watchdog thread may end the process in better order.
void Runtime::AbortAfterHang() {
  mutex_.unlock();
  std::this_thread::sleep_for(std::chrono::seconds(hang_seconds_));
  Die("a call waited " + std::to_string(hang_seconds_) + " s for a stream that hangs");
}

void Runtime::NoteLaunch(const void* kernel, int64_t blocks, int threads) {
  ++launches_[kernel];
  if (launch_log_.empty()) return;
  const std::string line =
      KernelName(kernel) + " " + std::to_string(blocks) + " " + std::to_string(threads) + "\n";
  // One write of a short line to a file opened for appending is whole, whoever else writes.
  const int file = open(launch_log_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0 || write(file, line.data(), line.size()) < 0) Die("cannot write " + launch_log_);
  close(file);
}

}  // namespace simt::runtime
