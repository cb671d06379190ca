// Where kernel code enters the emulator. Kernels use the CUDA names of simt.h instead.
#ifndef KVERN_TESTS_SIMT_HOOKS_H_
#define KVERN_TESTS_SIMT_HOOKS_H_

#include <cstddef>
#include <cstdint>

#include "simt/grid.h"
#include "simt/site.h"

// Functions of these headers are not part of the kernel: the check build does not watch them. They
// must not be forced inline, since the compiler would then watch the inlined copy.
#if defined(KVERN_SIMT_CHECK)
#define SIMT_SHIM inline __attribute__((no_sanitize("thread")))
#define SIMT_CALLER __builtin_return_address(0)  // of a shim that is not inlined: the kernel
#else
#define SIMT_SHIM inline
#define SIMT_CALLER nullptr
#endif

namespace simt {

enum class WarpOp : uint8_t {
  kSync,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kReduceMinSigned,
  kReduceMaxSigned,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
};

struct WarpCall {
  WarpOp op = WarpOp::kSync;
  uint32_t mask = 0;
  uint64_t bits = 0;      // the lane's value
  uint32_t argument = 0;  // of shuffles: source, distance or mask
  uint32_t width = kWarpLanes;
  Site site;
};

enum class BarrierOp : uint8_t { kPlain, kCount, kAnd, kOr };

// Wait for the other lanes of the mask, or threads of the block; give the caller's own result.
uint64_t MeetWarp(const WarpCall& call);
int MeetBlock(BarrierOp op, int predicate, Site site);

struct SharedVariable {
  const void* tag = nullptr;  // one address per declaration
  const char* name = "";
  size_t bytes = 0;
  size_t alignment = 1;
};
void* DeclareShared(const SharedVariable& variable, Site site);
void* DynamicShared();  // aligned to 256 bytes, more than a GPU promises but as it is in practice

// Ends the grid with an Error; what() also says where and under which schedule.
[[noreturn]] void Fail(Fault fault, Site site, const char* text);
// `pc`: the code that made the access, null for the caller's.
[[noreturn]] void FailMisaligned(const void* address, size_t bytes, const void* pc);

struct Access {
  const void* address = nullptr;
  uint32_t bytes = 0;
  bool write = false;
  bool atomic = false;
};
// Check build only: one access of the running thread, by the code at `pc`.
void NoteAccess(const Access& access, const void* pc);

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_HOOKS_H_
