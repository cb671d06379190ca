// Counts allocations by standing in front of the C library's own functions.
#include "tests/bench/measure.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <ctime>

namespace {
std::atomic<int64_t> allocations{0};
}  // namespace

extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* old, size_t bytes);

void* malloc(size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(count, bytes);
}
void* realloc(void* old, size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(old, bytes);
}
}  // extern "C"

namespace kvern::bench {
namespace {

// Four independent sums of 32 bytes: enough loads in flight for any core.
uint64_t SumOf(std::span<const std::byte> bytes) {
  using Vector __attribute__((vector_size(32))) = uint64_t;
  constexpr size_t kStep = 4 * sizeof(Vector);
  Vector sums[4] = {};
  for (size_t at = 0; at + kStep <= bytes.size(); at += kStep) {
    for (size_t i = 0; i < 4; ++i) {
      Vector part;
      std::memcpy(&part, bytes.data() + at + i * sizeof(Vector), sizeof(part));
      sums[i] += part;
    }
  }
  const Vector sum = sums[0] + sums[1] + sums[2] + sums[3];
  return sum[0] + sum[1] + sum[2] + sum[3];
}

}  // namespace

int64_t Allocations() { return allocations.load(std::memory_order_relaxed); }

Instant Now() {
  const auto wall = std::chrono::steady_clock::now().time_since_epoch();
  timespec cpu;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
  return {std::chrono::duration<double>(wall).count(),
          static_cast<double>(cpu.tv_sec) + 1e-9 * static_cast<double>(cpu.tv_nsec)};
}

Instant StreamRead::Run() {
  const int64_t threads = runner_.Threads();
  const size_t share = bytes_.size() / threads;
  const Instant begin = Now();
  const absl::Status status = runner_.ForEach(threads, [&](int64_t item, int /*worker*/) {
    benchmark::DoNotOptimize(SumOf(bytes_.subspan(item * share, share)));
    return absl::OkStatus();
  });
  benchmark::DoNotOptimize(status.ok());
  return Now() - begin;
}

void MeasureRound(benchmark::State& state, StreamRead& read, const Work& work,
                  absl::FunctionRef<absl::Status()> run) {
  for (auto unused : state) {
    absl::Status status = run();
    const Instant before = read.Run();
    const int64_t allocations_before = Allocations();
    const Instant begin = Now();
    status.Update(run());
    const Instant took = Now() - begin;
    const int64_t allocated = Allocations() - allocations_before;
    const Instant after = read.Run();
    if (!status.ok()) {
      state.SkipWithError(status.ToString().c_str());
      return;
    }
    state.SetIterationTime(took.wall);
    const double read_wall = (before.wall + after.wall) / 2;
    const double read_bytes = static_cast<double>(read.Bytes());
    state.counters["wall_ms"] = took.wall * 1e3;
    state.counters["x_read"] = took.wall / read_wall;
    state.counters["x_read_cpu"] = took.cpu / ((before.cpu + after.cpu) / 2);
    state.counters["read_gbps"] = read_bytes / read_wall / 1e9;
    state.counters["floor_x"] = static_cast<double>(work.floor_bytes) / read_bytes;
    state.counters["floor_mib"] = static_cast<double>(work.floor_bytes) / (1 << 20);
    state.counters["tokens_per_s"] = static_cast<double>(work.tokens) / took.wall;
    state.counters["allocations"] = static_cast<double>(allocated);
  }
}

}  // namespace kvern::bench
