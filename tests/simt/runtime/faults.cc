// Reads and sets the faults that runtime calls then meet.
#include "simt/runtime/faults.h"

#include <charconv>
#include <utility>

#include "simt/runtime/runtime.h"
#include "simt/runtime/symbols.h"

namespace simt {
namespace runtime {
namespace {

constexpr std::pair<const char*, FaultKind> kKinds[] = {
    {"out_of_memory", FaultKind::kOutOfMemory},
    {"illegal_address", FaultKind::kIllegalAddress},
    {"ecc", FaultKind::kEcc},
    {"launch_failure", FaultKind::kLaunchFailure},
    {"device_lost", FaultKind::kDeviceLost},
    {"hang", FaultKind::kHang},
};

bool ParseFault(const std::string& text, InjectedFault* fault) {
  const size_t colon = text.find(':');
  if (colon == std::string::npos) return false;
  const size_t at = std::min(text.find('@', colon), text.size());
  bool known = false;
  for (const auto& [name, kind] : kKinds) {
    if (text.compare(0, colon, name) != 0) continue;
    fault->kind = kind;
    known = true;
  }
  const char* const end = text.data() + at;
  const auto [stop, error] = std::from_chars(text.data() + colon + 1, end, fault->call);
  if (at < text.size()) fault->function = text.substr(at + 1);
  return known && error == std::errc() && stop == end && fault->call > 0;
}

}  // namespace

bool ParseFaults(const std::string& text, std::vector<InjectedFault>* faults) {
  std::vector<InjectedFault> parsed;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (!ParseFault(text.substr(begin, end - begin), &parsed.emplace_back())) return false;
    begin = end + 1;
  }
  faults->insert(faults->end(), parsed.begin(), parsed.end());
  return true;
}

}  // namespace runtime

using runtime::Runtime;

void Faults::Inject(const InjectedFault& fault) {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex_);
  runtime.faults_.push_back(fault);
}

bool Faults::InjectAll(const std::string& text) {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex_);
  return runtime::ParseFaults(text, &runtime.faults_);
}

void Faults::Clear() {
  Runtime& runtime = Runtime::Get();
  {
    const std::lock_guard lock(runtime.mutex_);
    runtime.faults_.clear();
    runtime.sticky_ = cudaSuccess;
    runtime.streams_.Clear();
  }
  runtime.Take();
}

void Faults::SetAbortOnKernelError(bool abort) {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex_);
  runtime.abort_on_kernel_error_ = abort;
}

int64_t Faults::Calls() {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex_);
  return runtime.calls_;
}

int64_t Faults::Calls(const std::string& function) {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex_);
  const auto found = runtime.calls_of_.find(function);
  return found == runtime.calls_of_.end() ? 0 : found->second;
}

int64_t LaunchCount() {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex_);
  int64_t total = 0;
  for (const auto& [kernel, count] : runtime.launches_) total += count;
  return total;
}

std::map<std::string, int64_t> LaunchCounts() {
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex_);
  std::map<std::string, int64_t> counts;
  for (const auto& [kernel, count] : runtime.launches_) {
    counts[runtime::KernelName(kernel)] += count;
  }
  return counts;
}

}  // namespace simt
