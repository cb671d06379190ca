// Work timed between two stream reads of the same keys, so that a busy machine slows both.
#ifndef KVERN_CLIENT_CLI_BENCH_MEASURE_H_
#define KVERN_CLIENT_CLI_BENCH_MEASURE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/runner.h"

namespace kvern::bench {

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
  [[gnu::noinline]] Instant Run();
  int64_t Bytes() const { return static_cast<int64_t>(bytes_.size()); }

 private:
  std::span<const std::byte> bytes_;
  cpu::Runner runner_;
};

// One run of an op, inputs and outputs bound.
using Run = std::function<absl::Status()>;

// The op on the wall and by CPU time, beside the mean of the reads before and after it.
struct Round {
  Instant op;
  Instant read;
  double StreamReads() const { return op.wall / read.wall; }
  double StreamReadsCpu() const { return op.cpu / read.cpu; }
};
// The op once to warm up, then read, op, read. Errors: the op's.
absl::StatusOr<Round> MeasureRound(StreamRead& read, const Run& run);

// A run and nothing else. tests/gates/instructions.py counts from here to the next StreamRead::Run.
[[gnu::noinline]] absl::Status RunOnce(const Run& run);

struct Quantiles {
  double median = 0;
  double p10 = 0;
  double p90 = 0;
};
// Linear between neighbours; `values` is not empty.
Quantiles QuantilesOf(std::vector<double> values);

}  // namespace kvern::bench

#endif  // KVERN_CLIENT_CLI_BENCH_MEASURE_H_
