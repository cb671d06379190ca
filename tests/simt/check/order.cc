// Vector clocks of the lanes of a warp (Lamport 1978, Mattern 1989), and a counter for barriers.
#include "simt/check/order.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "simt/check.h"
#include "simt/check/profile.h"
#include "simt/machine.h"

namespace simt::check {
namespace {

uint32_t run = 0;        // of the current block
uint32_t first_run = 0;  // of the grid
uint32_t epoch = 0;
// clocks[t][l]: up to which of its accesses lane l of t's warp is known to t. t's own entry counts.
uint32_t clocks[kMaxThreads][kWarpLanes];

}  // namespace

void OnGridStart() {
  first_run = run + 1;
  ForgetAccesses();
}

void OnGridEnd() { ForgetAccesses(); }

void OnBlockStart() {
  ++run;
  epoch = 0;
  std::memset(clocks, 0, sizeof(clocks[0]) * static_cast<size_t>(machine.shape.threads));
  for (int t = 0; t < machine.shape.threads; ++t) clocks[t][t % kWarpLanes] = 1;
  ForgetSharedWrites();
}

void OnBlockEnd() { FoldProfile(); }

void OnBarrier() { ++epoch; }

void OnSyncWarp(int warp, uint32_t participants) {
  auto* const lanes = &clocks[warp * kWarpLanes];
  uint32_t joined[kWarpLanes] = {};
  for (uint32_t m = participants; m != 0; m &= m - 1) {
    const uint32_t* known = lanes[std::countr_zero(m)];
    for (int l = 0; l < kWarpLanes; ++l) joined[l] = std::max(joined[l], known[l]);
  }
  for (uint32_t m = participants; m != 0; m &= m - 1) {
    const int lane = std::countr_zero(m);
    std::memcpy(lanes[lane], joined, sizeof(joined));
    ++lanes[lane][lane];
  }
}

Mark MarkNow(const void* pc, bool atomic) {
  const int thread = machine.current;
  return {pc,    run, epoch, clocks[thread][thread % kWarpLanes], static_cast<uint16_t>(thread),
          atomic};
}

bool Ordered(const Mark& before, const Mark& now, Space space) {
  if (before.run != now.run) return space == Space::kShared || before.run < first_run;
  if (before.thread == now.thread || before.epoch < now.epoch) return true;
  if (before.thread / kWarpLanes != now.thread / kWarpLanes) return false;
  return clocks[now.thread][before.thread % kWarpLanes] >= before.clock;
}

}  // namespace simt::check
