// Ratios hold where times do not: neighbours on the machine take from read and op alike.
#include "client/cli/bench/measure.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <ctime>

#include "kernels/base/status_macros.h"

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

// The compiler must believe that someone looks at the sum.
void Use(uint64_t value) { asm volatile("" : : "r"(value) : "memory"); }

double At(const std::vector<double>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return std::lerp(sorted[below], sorted[above], place - static_cast<double>(below));
}

}  // namespace

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
    Use(SumOf(bytes_.subspan(item * share, share)));
    return absl::OkStatus();
  });
  KVERN_CHECK(status.ok());  // no stop is bound
  return Now() - begin;
}

absl::Status RunOnce(const Run& run) { return run(); }

absl::StatusOr<Round> MeasureRound(StreamRead& read, const Run& run) {
  KVERN_RETURN_IF_ERROR(RunOnce(run));
  const Instant before = read.Run();
  const Instant begin = Now();
  KVERN_RETURN_IF_ERROR(RunOnce(run));
  Round round;
  round.op = Now() - begin;
  const Instant after = read.Run();
  round.read = {(before.wall + after.wall) / 2, (before.cpu + after.cpu) / 2};
  return round;
}

Quantiles QuantilesOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {At(values, 0.5), At(values, 0.1), At(values, 0.9)};
}

}  // namespace kvern::bench
