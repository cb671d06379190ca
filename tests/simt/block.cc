// Meeting points. The last of those expected makes the results of all, each lane's own, so that a
// lane may run ahead into its next meeting while others still have to read theirs.
#include <algorithm>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "simt/check.h"
#include "simt/machine.h"
#include "simt/warp.h"

namespace simt {
namespace {

bool SameLine(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

// Opens every meeting of the warp for which nobody is missing any more.
void OpenMeetings(int warp_index) {
  Warp& warp = machine.warps[warp_index];
  Thread* lanes = &machine.threads[warp_index * kWarpLanes];
  uint32_t left = warp.waiting;
  while (left != 0) {
    const int lane = std::countr_zero(left);
    left &= left - 1;
    const uint32_t participants = lanes[lane].call.mask & ~warp.done;
    if ((participants & ~warp.waiting) != 0) continue;
    ResolveWarp(lanes, participants, lane);
    if constexpr (kChecking) {
      if (lanes[lane].call.op == WarpOp::kSync) check::OnSyncWarp(warp_index, participants);
    }
    for (uint32_t m = participants; m != 0; m &= m - 1) {
      lanes[std::countr_zero(m)].state = State::kReady;
    }
    machine.schedule.MakeReady(warp_index, participants);
    warp.waiting &= ~participants;
    left &= ~participants;
  }
}

// `lane` returns: nobody may wait for it.
void CheckMissing(int warp_index, uint32_t lane) {
  if (machine.config.return_before_meeting) return;
  const Warp& warp = machine.warps[warp_index];
  for (uint32_t m = warp.waiting; m != 0; m &= m - 1) {
    const WarpCall& call = machine.threads[warp_index * kWarpLanes + std::countr_zero(m)].call;
    if ((call.mask & lane) == 0) continue;
    Fail(Fault::kCollective, call.site, "a lane returned while others name it in their mask");
  }
}

void OpenBarrier() {
  Barrier& barrier = machine.barrier;
  if (barrier.op == BarrierOp::kCount) barrier.result = barrier.true_count;
  if (barrier.op == BarrierOp::kAnd) barrier.result = barrier.true_count == barrier.arrived;
  if (barrier.op == BarrierOp::kOr) barrier.result = barrier.true_count > 0;
  barrier.arrived = 0;
  barrier.true_count = 0;
  if constexpr (kChecking) check::OnBarrier();
  for (int first = 0; first < machine.shape.threads; first += kWarpLanes) {
    uint32_t lanes = 0;
    for (int t = first; t < std::min(first + kWarpLanes, machine.shape.threads); ++t) {
      if (machine.threads[t].state != State::kAtBarrier) continue;
      machine.threads[t].state = State::kReady;
      lanes |= 1u << (t - first);
    }
    machine.schedule.MakeReady(first / kWarpLanes, lanes);
  }
}

}  // namespace

void StartBlock(int64_t block) {
  machine.block = block;
  const int threads = machine.shape.threads;
  const int warps = (threads + kWarpLanes - 1) / kWarpLanes;
  machine.live = threads;
  machine.barrier = {};
  const Config& config = machine.config;
  const uint64_t seed = Mix(Mix(config.seed + machine.number) + static_cast<uint64_t>(block));
  machine.schedule.Start(config.order, seed, warps);
  for (int t = 0; t < threads; ++t) {
    machine.threads[t].stack = nullptr;
    machine.threads[t].state = State::kReady;
  }
  for (int w = 0; w < warps; ++w) {
    const int lanes = std::min(threads - w * kWarpLanes, kWarpLanes);
    const uint32_t present = lanes == kWarpLanes ? 0xFFFFFFFFu : (1u << lanes) - 1;
    machine.warps[w] = {~present, 0, 0};
    machine.schedule.MakeReady(w, present);
  }
  machine.arena.Start(static_cast<size_t>(machine.shape.shared_bytes));
  if constexpr (kChecking) check::OnBlockStart();
}

void FinishThread() {
  const int warp_index = machine.current / kWarpLanes;
  Warp& warp = machine.warps[warp_index];
  machine.threads[machine.current].state = State::kDone;
  const uint32_t lane = 1u << machine.current % kWarpLanes;
  warp.done |= lane;
  warp.returned |= lane;
  --machine.live;
  if (warp.waiting != 0) {
    CheckMissing(warp_index, lane);
    OpenMeetings(warp_index);
  }
  const Barrier& barrier = machine.barrier;
  if (barrier.arrived == 0) return;
  if (!machine.config.return_before_meeting) {
    Fail(Fault::kBarrier, barrier.site, "a thread returned while others wait at this barrier");
  }
  if (barrier.arrived == machine.live) OpenBarrier();
}

uint64_t MeetWarp(const WarpCall& call) {
  const EmulatorScope scope;
  Thread& thread = machine.threads[machine.current];
  const int lane = machine.current % kWarpLanes;
  const int warp_index = machine.current / kWarpLanes;
  if ((call.mask >> lane & 1) == 0) {
    Fail(Fault::kCollective, call.site, "a lane calls a collective without being in its mask");
  }
  if (!std::has_single_bit(call.width) || call.width > kWarpLanes) {
    Fail(Fault::kCollective, call.site, "the width of a shuffle is no power of two up to 32");
  }
  thread.call = call;
  thread.state = State::kAtWarp;
  Warp& warp = machine.warps[warp_index];
  if ((call.mask & warp.returned) != 0 && !machine.config.return_before_meeting) {
    Fail(Fault::kCollective, call.site, "the mask of a collective names a lane that has returned");
  }
  warp.waiting |= 1u << lane;
  if ((call.mask & ~warp.done & ~warp.waiting) == 0) OpenMeetings(warp_index);
  Suspend();
  return thread.result;
}

int MeetBlock(BarrierOp op, int predicate, Site site) {
  const EmulatorScope scope;
  Barrier& barrier = machine.barrier;
  if (barrier.arrived == 0) {
    barrier.op = op;
    barrier.site = site;
    if (machine.live < machine.shape.threads && !machine.config.return_before_meeting) {
      Fail(Fault::kBarrier, site, "threads wait at this barrier after others returned");
    }
  } else if (barrier.op != op || !SameLine(barrier.site, site)) {
    char text[256];
    std::snprintf(text, sizeof(text),
                  "threads of a block wait at different barriers, others at %s:%d",
                  barrier.site.file, barrier.site.line);
    Fail(Fault::kBarrier, site, text);
  }
  ++barrier.arrived;
  barrier.true_count += predicate != 0;
  Thread& thread = machine.threads[machine.current];
  thread.state = State::kAtBarrier;
  thread.call.site = site;
  if (barrier.arrived == machine.live) OpenBarrier();
  Suspend();
  // Nobody can open the next barrier before this thread arrives there.
  return barrier.result;
}

void DescribeDeadlock(char* text, size_t bytes) {
  size_t used = static_cast<size_t>(std::snprintf(text, bytes, "no thread can go on"));
  const auto alike = [](const Thread& a, const Thread& b) {
    return a.state == b.state && (a.state == State::kDone || SameLine(a.call.site, b.call.site));
  };
  for (int t = 0; t < machine.shape.threads && used + 1 < bytes;) {
    const Thread& thread = machine.threads[t];
    int end = t + 1;
    while (end < machine.shape.threads && alike(machine.threads[end], thread)) ++end;
    char where[400] = "have returned";
    const Site site = thread.call.site;
    if (thread.state == State::kAtBarrier) {
      std::snprintf(where, sizeof(where), "wait at the barrier of %s:%d", site.file, site.line);
    } else if (thread.state == State::kAtWarp) {
      std::snprintf(where, sizeof(where), "wait for mask %08x at %s:%d", thread.call.mask,
                    site.file, site.line);
    }
    used += static_cast<size_t>(
        std::snprintf(text + used, bytes - used, "; threads %d-%d %s", t, end - 1, where));
    t = end;
  }
}

}  // namespace simt
