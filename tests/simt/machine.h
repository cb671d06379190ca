// The block that runs: its threads, what they wait for, and the grid around it.
#ifndef KVERN_TESTS_SIMT_MACHINE_H_
#define KVERN_TESTS_SIMT_MACHINE_H_

#include <cstdint>
#include <mutex>
#include <string>

#include "simt/arena.h"
#include "simt/build.h"
#include "simt/fiber.h"
#include "simt/grid.h"
#include "simt/hooks.h"
#include "simt/schedule.h"

namespace simt {

enum class State : uint8_t { kReady, kAtWarp, kAtBarrier, kDone };

struct Thread {
  Context context;
  Stack* stack = nullptr;  // null until it starts
  State state = State::kReady;
  WarpCall call;        // while kAtWarp; its site also while kAtBarrier
  uint64_t result = 0;  // of its last meeting in the warp
};

struct Warp {
  uint32_t done = 0;      // lanes that never were or returned
  uint32_t returned = 0;  // only the latter
  uint32_t waiting = 0;   // lanes kAtWarp
};

struct Barrier {
  int arrived = 0;
  BarrierOp op = BarrierOp::kPlain;
  Site site;
  int true_count = 0;
  int result = 0;  // of the last one that opened
};

struct Failure {
  bool happened = false;
  Fault fault = Fault::kMemory;
  Site site;
  const void* pc = nullptr;        // instead of a site
  const void* other_pc = nullptr;  // of the access that it conflicts with
  char text[1024] = {};
};

struct Machine {
  GridShape shape;
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  uint64_t grid = 0;    // counts from 1
  uint64_t number = 0;  // the same since the schedule began, part of every block's seed
  Config config;        // while it runs

  int64_t block = 0;
  int live = 0;     // threads that have not returned
  int current = 0;  // thread
  Barrier barrier;
  Thread threads[kMaxThreads];
  Warp warps[kMaxThreads / kWarpLanes];
  Schedule schedule;
  Arena arena;
  Context launcher;
  Failure failure;
};

extern Machine machine;

// Set by the launcher around fibers, on its OS thread.
extern thread_local bool on_fiber;
// Kernel code, not the emulator's, runs: what the check build listens to.
extern bool kernel_code;

// While one lives the emulator works for the kernel, unseen by the check build. A thread that waits
// inside goes on inside.
class EmulatorScope {
 public:
  EmulatorScope() { kernel_code = false; }
  ~EmulatorScope() { kernel_code = true; }
  EmulatorScope(const EmulatorScope&) = delete;
  EmulatorScope& operator=(const EmulatorScope&) = delete;
};

// grid.cc
std::mutex& GridMutex();    // held while a grid runs
void RestartGridNumbers();  // so that a schedule repeats from its seed alone

// block.cc
void StartBlock(int64_t block);
void FinishThread();  // the current one returned: opens what waited for it
// Text of who waits where.
void DescribeDeadlock(char* text, size_t bytes);

// threads.cc
void RunBlock();  // on the launcher's stack, after StartBlock; the failure says how it went
void Suspend();   // the current thread waits; returns when it was made ready and taken
[[noreturn]] void Abandon();  // with the failure filled in
// As Fail, for code known by its address.
[[noreturn]] void FailAt(Fault fault, const void* pc, const char* text);

// signals.cc: faults of kernels become failures of their grid, others go where they went before.
void CatchFaults();

// source_line.cc: "file:line" of code, its innermost that is not the emulator's; slow.
std::string LineOf(const void* pc);
// As LineOf, but what calls the loaders (Load...) that kernels share, not the loader itself.
std::string AccessLineOf(const void* pc);

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_MACHINE_H_
