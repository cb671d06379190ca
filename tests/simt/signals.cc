// A kernel that touches memory that is not there ends its grid, not the process.
#include <signal.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>

#include "simt/machine.h"

namespace simt {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};
constexpr size_t kSignalStackBytes = size_t{64} << 10;

struct sigaction before[NSIG];

const void* CodeOf(const void* context) {
  const auto* machine_context = &static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return reinterpret_cast<const void*>(machine_context->gregs[REG_RIP]);
#elif defined(__aarch64__)
  return reinterpret_cast<const void*>(machine_context->pc);
#else
  static_cast<void>(machine_context);
  return nullptr;
#endif
}

// Leaves the signal's stack for the launcher: SA_NODEFER has blocked nothing that would stay so.
__attribute__((no_sanitize("address"))) void OnFault(int signal, siginfo_t* info, void* context) {
  if (!on_fiber) {
    // Not ours: with the handler of before in place, the instruction faults again.
    sigaction(signal, &before[signal], nullptr);
    return;
  }
  Failure& failure = machine.failure;
  failure.fault = Fault::kMemory;
  failure.site = {};
  failure.pc = CodeOf(context);
  const Stack* stack = machine.threads[machine.current].stack;
  const auto* address = static_cast<const std::byte*>(info->si_addr);
  const char* what = signal == SIGFPE ? "arithmetic fault" : "memory fault";
  if (stack != nullptr && address < stack->bottom && address >= stack->bottom - 4096) {
    what = "local memory of a thread overflows";
  }
  std::snprintf(failure.text, sizeof(failure.text), "%s at address %p", what, info->si_addr);
  Abandon();
}

// One for each OS thread that runs grids, unless it has one.
struct SignalStack {
  SignalStack() {
    stack_t old = {};
    if (sigaltstack(nullptr, &old) == 0 && (old.ss_flags & SS_DISABLE) == 0) return;
    stack_t mine = {};
    mine.ss_sp = std::malloc(kSignalStackBytes);
    mine.ss_size = kSignalStackBytes;
    memory = mine.ss_sp;
    sigaltstack(&mine, nullptr);
  }
  ~SignalStack() {
    if (memory == nullptr) return;
    stack_t none = {};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
    std::free(memory);
  }
  void* memory = nullptr;
};

}  // namespace

void CatchFaults() {
  thread_local const SignalStack stack;
  static_cast<void>(stack.memory);
  for (const int signal : kSignals) {
    struct sigaction now = {};
    sigaction(signal, nullptr, &now);
    if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == &OnFault) continue;
    before[signal] = now;
    struct sigaction ours = {};
    ours.sa_sigaction = &OnFault;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(signal, &ours, nullptr);
  }
}

}  // namespace simt
