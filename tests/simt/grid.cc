// A grid is its blocks one after another; the first failure ends it.
#include "simt/grid.h"

#include <mutex>
#include <string>

#include "simt/check.h"
#include "simt/hooks.h"
#include "simt/machine.h"
#include "simt/memory.h"
#include "simt/simt.h"

namespace simt {
namespace {

void CheckShape(const GridShape& shape) {
  const char* problem = nullptr;
  if (shape.blocks < 1 || shape.blocks > INT32_MAX) problem = "blocks are not in 1 .. 2^31 - 1";
  if (shape.threads < 1 || shape.threads > kMaxThreads) problem = "threads are not in 1 .. 1024";
  if (shape.shared_bytes < 0 || static_cast<size_t>(shape.shared_bytes) > kMaxSharedBytes) {
    problem = "dynamic shared memory is not in 0 .. 227 KiB";
  }
  if (problem != nullptr) throw Error(Fault::kResources, std::string("simt: ") + problem, 0, 0);
}

[[noreturn]] void Report() {
  const Failure& failure = machine.failure;
  std::string text = std::string("simt: ") + failure.text;
  if (failure.pc != nullptr) text += ", at " + LineOf(failure.pc);
  if (failure.other_pc != nullptr) text += ", the other at " + LineOf(failure.other_pc);
  if (failure.site.line > 0) {
    text += std::string(", at ") + failure.site.file + ":" + std::to_string(failure.site.line);
  }
  text += "; block " + std::to_string(machine.block) + ", thread " +
          std::to_string(machine.current) + ", order " + Name(machine.config.order) + ", seed " +
          std::to_string(machine.config.seed) + ", grid " + std::to_string(machine.number);
  ReturnAllStacks();
  throw Error(failure.fault, text, machine.block, machine.current);
}

void CheckZones() {
  const char* overrun = machine.arena.OverrunVariable();
  if (overrun == nullptr) return;
  throw Error(Fault::kOutOfBounds,
              std::string("simt: the block wrote behind shared variable ") + overrun + "; block " +
                  std::to_string(machine.block),
              machine.block, 0);
}

}  // namespace

std::mutex& GridMutex() {
  static std::mutex* mutex = new std::mutex;  // outlives whatever else ends with the process
  return *mutex;
}

void RestartGridNumbers() {
  const std::lock_guard lock(GridMutex());
  machine.number = 0;
}

void RunGrid(const GridShape& shape, void (*body)(void*), void* context) {
  CheckShape(shape);
  const std::lock_guard lock(GridMutex());
  const DeviceAccess access;
  CatchFaults();
  machine.shape = shape;
  machine.body = body;
  machine.context = context;
  ++machine.grid;
  ++machine.number;
  machine.config = Current();
  machine.failure.happened = false;
  machine.failure.pc = nullptr;
  machine.failure.other_pc = nullptr;
  blockDim = {static_cast<unsigned>(shape.threads), 1, 1};
  gridDim = {static_cast<unsigned>(shape.blocks), 1, 1};
  if constexpr (kChecking) check::OnGridStart();
  const BlockOrder order(machine.config.order, machine.config.seed + machine.number, shape.blocks);
  for (int64_t i = 0; i < shape.blocks; ++i) {
    const int64_t block = order.At(i);
    blockIdx = {static_cast<unsigned>(block), 0, 0};
    StartBlock(block);
    RunBlock();
    if (machine.failure.happened) Report();
    CheckZones();
    if constexpr (kChecking) check::OnBlockEnd();
  }
  if constexpr (kChecking) check::OnGridEnd();
}

bool InKernel() { return on_fiber && kernel_code; }

uint64_t GridCount() {
  const std::lock_guard lock(GridMutex());
  return machine.grid;
}

void* DeclareShared(const SharedVariable& variable, Site site) {
  const EmulatorScope scope;
  return machine.arena.Declare(variable, site);
}

void* DynamicShared() {
  const EmulatorScope scope;
  if (machine.shape.shared_bytes == 0) {
    Fail(Fault::kResources, {}, "dynamic shared memory in a launch that has none");
  }
  return machine.arena.dynamic();
}

}  // namespace simt
