// Runs a grid of threads to its end on the calling OS thread.
#ifndef KVERN_TESTS_SIMT_GRID_H_
#define KVERN_TESTS_SIMT_GRID_H_

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "simt/config.h"
#include "simt/site.h"

namespace simt {

inline constexpr int kWarpLanes = 32;
inline constexpr int kMaxThreads = 1024;
inline constexpr size_t kMaxSharedBytes = size_t{227} << 10;  // static and dynamic of a block
inline constexpr size_t kMaxStaticSharedBytes = size_t{48} << 10;

struct GridShape {
  int64_t blocks = 0;
  int threads = 0;       // of a block, at most kMaxThreads
  int shared_bytes = 0;  // dynamic, at most kMaxSharedBytes
  // What body's context points to: kernels may read it (their parameters).
  size_t context_bytes = 0;
  const void* kernel = nullptr;  // for names; null: nameless
};

enum class Fault {
  kMemory,      // a signal: wild, guarded or misaligned access
  kDeadlock,    // nothing can run
  kBarrier,     // threads of a block at different barriers, or one returned
  kCollective,  // lanes disagree, or a shuffle reads a lane that takes no part
  kResources,   // shared memory, threads, blocks out of range
  kRace,        // this and the following: check build only
  kUninitialised,
  kOutOfBounds,
  kMisaligned,
  kNotDevice,
};

// A kernel did what no kernel may. what() names fault, line, block, thread, order and seed.
struct Error : std::runtime_error {
  Error(Fault fault, const std::string& text, int64_t block, int thread)
      : std::runtime_error(text), fault(fault), block(block), thread(thread) {}
  Fault fault;
  int64_t block;
  int thread;
};

// Calls body(context) once for every thread of every block, by the schedule of Current(). One grid
// runs at a time; callers on other OS threads wait. Throws Error; the grid is then abandoned, its
// other threads never finish. Not to be called from a kernel.
void RunGrid(const GridShape& shape, void (*body)(void*), void* context);

// True on the OS thread that runs a grid, while kernel code (not the emulator's) executes.
bool InKernel();

// Grids started so far, by this process.
uint64_t GridCount();

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_GRID_H_
