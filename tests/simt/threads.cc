// Threads of a block on fibers. A fiber runs the current thread; when that returns, the next one
// that has not started continues on the same stack, so kernels without meetings never switch.
#include <cstdio>

#include "simt/machine.h"
#include "simt/simt.h"

simt::Index3 threadIdx;
simt::Index3 blockIdx;
simt::Index3 blockDim;
simt::Index3 gridDim;

namespace simt {

Machine machine;
thread_local bool on_fiber = false;
bool kernel_code = false;

namespace {

void MakeCurrent(int thread) {
  machine.current = thread;
  threadIdx.x = static_cast<unsigned>(thread);
}

[[noreturn]] void FailDeadlock() {
  char text[sizeof(Failure::text)];
  DescribeDeadlock(text, sizeof(text));
  Fail(Fault::kDeadlock, {}, text);
}

// Its frame is abandoned whenever its stack is: AddressSanitizer must leave no marks there.
[[noreturn]] __attribute__((no_sanitize("address"))) void RunThreads() {
  OnFiberStart();
  Stack* const stack = machine.threads[machine.current].stack;
  for (;;) {
    kernel_code = true;
    machine.body(machine.context);
    kernel_code = false;
    FinishThread();
    const int next = machine.schedule.Take();
    if (next < 0) {
      if (machine.live > 0) FailDeadlock();
      ReturnStack(stack);
      SwitchForGood(&machine.launcher, nullptr);
    }
    MakeCurrent(next);
    Thread& thread = machine.threads[next];
    if (thread.stack != nullptr) {
      ReturnStack(stack);
      SwitchForGood(&thread.context, thread.stack);
    }
    thread.stack = stack;
  }
}

void GiveStack(Thread* thread) {
  thread->stack = TakeStack();
  Prepare(&thread->context, thread->stack, &RunThreads);
}

}  // namespace

void RunBlock() {
  const int first = machine.schedule.Take();
  MakeCurrent(first);
  Thread& thread = machine.threads[first];
  GiveStack(&thread);
  on_fiber = true;
  EnterFibers(&machine.launcher, &thread.context, thread.stack);
  on_fiber = false;
  kernel_code = false;
}

void Suspend() {
  Thread& from = machine.threads[machine.current];
  const int next = machine.schedule.Take();
  if (next < 0) FailDeadlock();
  MakeCurrent(next);
  Thread& to = machine.threads[next];
  if (&to == &from) return;
  if (to.stack == nullptr) GiveStack(&to);
  Switch(&from.context, &to.context, to.stack);
}

void Abandon() {
  machine.failure.happened = true;
  SwitchForGood(&machine.launcher, nullptr);
}

void FailAt(Fault fault, const void* pc, const char* text) {
  machine.failure.pc = pc;
  Fail(fault, {}, text);
}

void Fail(Fault fault, Site site, const char* text) {
  machine.failure.fault = fault;
  machine.failure.site = site;
  // `text` may lie on a stack that is about to be abandoned.
  char* to = machine.failure.text;
  char* const end = to + sizeof(machine.failure.text) - 1;
  while (*text != '\0' && to < end) *to++ = *text++;
  *to = '\0';
  Abandon();
}

void FailMisaligned(const void* address, size_t bytes, const void* pc) {
  char text[96];
  std::snprintf(text, sizeof(text), "%zu bytes at %p, which is not a multiple of that", bytes,
                address);
  const auto* after = static_cast<const char*>(pc != nullptr ? pc : __builtin_return_address(0));
  FailAt(Fault::kMisaligned, after - 1, text);
}

}  // namespace simt
