// Stacks and the switch between them. One OS thread at a time uses these.
#ifndef KVERN_TESTS_SIMT_FIBER_H_
#define KVERN_TESTS_SIMT_FIBER_H_

#include <cstddef>

#include "simt/build.h"

#if !SIMT_FAST_SWITCH
#include <ucontext.h>
#endif

namespace simt {

// Where a suspended fiber goes on. On x86-64 its registers lie on its stack.
struct Context {
#if SIMT_FAST_SWITCH
  void* stack_pointer = nullptr;
#else
  ucontext_t registers;
#endif
  void* fake_stack = nullptr;  // of AddressSanitizer
};

// Usable bytes [bottom, bottom + bytes); below them lies a page that faults.
struct Stack {
  std::byte* bottom = nullptr;
  size_t bytes = 0;
  Stack* next_free = nullptr;

  bool Holds(const void* address) const {
    const auto* byte = static_cast<const std::byte*>(address);
    return byte >= bottom && byte < bottom + bytes;
  }
};

Stack* TakeStack();
void ReturnStack(Stack* stack);  // may be the one in use, until the next switch
void ReturnAllStacks();          // abandons what runs on them

// Makes `context` start `entry` on `stack`; entry calls OnFiberStart first and never returns.
void Prepare(Context* context, Stack* stack, void (*entry)());
void OnFiberStart();

// From the stack of an OS thread to a prepared fiber; returns when a fiber switches back.
void EnterFibers(Context* launcher, Context* to, const Stack* stack);
// Suspends the caller in `from` and goes on in `to`, which runs on `stack` (null: the launcher's).
void Switch(Context* from, Context* to, const Stack* stack);
// The same for a caller that never goes on.
[[noreturn]] void SwitchForGood(Context* to, const Stack* stack);

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_FIBER_H_
