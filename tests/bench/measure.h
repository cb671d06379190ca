// Work timed between two stream reads of the same keys, so that a busy machine slows both.
#ifndef KVERN_TESTS_BENCH_MEASURE_H_
#define KVERN_TESTS_BENCH_MEASURE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "benchmark/benchmark.h"
#include "kernels/cpu/runner.h"

namespace kvern::bench {

// Each file registers its own; main runs what --benchmark_filter names.
void RegisterOpBenchmarks();
void RegisterPipelineBenchmarks();
void RegisterRpcBenchmarks();

// Rounds of one op: report.py takes median, p10 and p90 over them.
inline constexpr int kRounds = 9;

// Calls of malloc, calloc and realloc by the whole process so far.
int64_t Allocations();

// Seconds: on the wall, and of all threads of this process (blind to time that others take).
struct Instant {
  double wall = 0;
  double cpu = 0;
  Instant operator-(const Instant& other) const { return {wall - other.wall, cpu - other.cpu}; }
};
Instant Now();

// One pass over `bytes`, nothing computed but a sum: what memory can deliver to these threads.
class StreamRead {
 public:
  StreamRead(std::span<const std::byte> bytes, int threads) : bytes_(bytes), runner_(threads) {}
  Instant Run();
  int64_t Bytes() const { return static_cast<int64_t>(bytes_.size()); }

 private:
  std::span<const std::byte> bytes_;
  cpu::Runner runner_;
};

// What one run of an op amounts to.
struct Work {
  int64_t tokens = 0;       // of one layer, all its heads
  int64_t floor_bytes = 0;  // must be read or written, however the op is written
};
// One round: the op once to warm up, then read, op, read. Sets manual time and counters.
void MeasureRound(benchmark::State& state, StreamRead& read, const Work& work,
                  absl::FunctionRef<absl::Status()> run);

}  // namespace kvern::bench

#endif  // KVERN_TESTS_BENCH_MEASURE_H_
