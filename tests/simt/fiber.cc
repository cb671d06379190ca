// Fibers: a switch saves the six registers that a callee must keep and swaps stack pointers, which
// takes a few nanoseconds; swapcontext makes a system call each time, so it is only the fallback.
#include "simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <deque>

#include "simt/build.h"

#if SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if SIMT_FAST_SWITCH
extern "C" void SimtSwitchStacks(void** from, void* to);
asm(R"(
.text
.p2align 4
.type SimtSwitchStacks, @function
SimtSwitchStacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size SimtSwitchStacks, .-SimtSwitchStacks
)");
#endif

namespace simt {
namespace {

constexpr size_t kStackBytes = (SIMT_ASAN ? size_t{256} : size_t{64}) << 10;

std::deque<Stack> all_stacks;
Stack* free_stacks = nullptr;
// The launcher's stack, which only AddressSanitizer needs to know.
[[maybe_unused]] const void* launcher_bottom = nullptr;
[[maybe_unused]] size_t launcher_bytes = 0;

Stack* NewStack() {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
    perror("simt: no memory for a stack");
    abort();
  }
  // Tops at equal distances would all fall into the same lines of the cache.
  const size_t color = all_stacks.size() % 16 * 192;
  return &all_stacks.emplace_back(
      Stack{static_cast<std::byte*>(memory) + page, kStackBytes - color, nullptr});
}

void BeforeSwitch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const Stack* stack) {
#if SIMT_ASAN
  __sanitizer_start_switch_fiber(fake_stack, stack != nullptr ? stack->bottom : launcher_bottom,
                                 stack != nullptr ? stack->bytes : launcher_bytes);
#endif
}

void AfterSwitch([[maybe_unused]] void* fake_stack, [[maybe_unused]] bool from_launcher) {
#if SIMT_ASAN
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
  if (from_launcher) {
    launcher_bottom = bottom;
    launcher_bytes = bytes;
  }
#endif
}

bool launcher_switched = false;  // the next fiber to start is entered from the launcher

void Jump(Context* from, Context* to) {
#if SIMT_FAST_SWITCH
  SimtSwitchStacks(&from->stack_pointer, to->stack_pointer);
#else
  swapcontext(&from->registers, &to->registers);
#endif
}

}  // namespace

Stack* TakeStack() {
  if (free_stacks == nullptr) return NewStack();
  Stack* stack = free_stacks;
  free_stacks = stack->next_free;
  return stack;
}

void ReturnStack(Stack* stack) {
  stack->next_free = free_stacks;
  free_stacks = stack;
}

void ReturnAllStacks() {
  free_stacks = nullptr;
  for (Stack& stack : all_stacks) {
#if SIMT_ASAN
    ASAN_UNPOISON_MEMORY_REGION(stack.bottom, stack.bytes);
#endif
    ReturnStack(&stack);
  }
}

void Prepare(Context* context, Stack* stack, void (*entry)()) {
  context->fake_stack = nullptr;
#if SIMT_FAST_SWITCH
  // As if entry had been called: the return address (never used) at 16 n + 8.
  void** top = reinterpret_cast<void**>(stack->bottom + stack->bytes / 16 * 16);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context->stack_pointer = top;
#else
  getcontext(&context->registers);
  context->registers.uc_stack.ss_sp = stack->bottom;
  context->registers.uc_stack.ss_size = stack->bytes;
  context->registers.uc_link = nullptr;
  makecontext(&context->registers, entry, 0);
#endif
}

void OnFiberStart() {
  AfterSwitch(nullptr, launcher_switched);
  launcher_switched = false;
}

void EnterFibers(Context* launcher, Context* to, const Stack* stack) {
  launcher_switched = true;
  Switch(launcher, to, stack);
}

void Switch(Context* from, Context* to, const Stack* stack) {
  BeforeSwitch(&from->fake_stack, stack);
  Jump(from, to);
  AfterSwitch(from->fake_stack, false);
}

__attribute__((no_sanitize("address"))) void SwitchForGood(Context* to, const Stack* stack) {
  Context nowhere;
  BeforeSwitch(nullptr, stack);
  Jump(&nowhere, to);
  __builtin_unreachable();
}

}  // namespace simt
