// In which order the emulator runs what a GPU runs at once, and what it tolerates.
#ifndef KVERN_TESTS_SIMT_CONFIG_H_
#define KVERN_TESTS_SIMT_CONFIG_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace simt {

// Of threads and of blocks. Random is, by seed, one of three: random warp priorities (shows most
// missing barriers), priorities redrawn now and then, any ready thread.
enum class Order { kForward, kReverse, kRandom };
// When queued work of a stream runs: at once, when something waits for it, or by chance.
enum class StreamMode { kEager, kLazy, kRandom };

struct Config {
  Order order = Order::kForward;
  uint64_t seed = 0;
  StreamMode streams = StreamMode::kLazy;
  // A thread may return though others meet it at barriers or name it in masks (legal; the rules of
  // kernels/cuda/device.h forbid it).
  bool return_before_meeting = false;
  // Device memory faults when host code touches it outside DeviceAccess.
  bool hide_device_memory = false;
  // The check build counts sectors and bank conflicts for TakeMemStats.
  bool profile = false;
  size_t device_bytes = size_t{4} << 30;  // capacity of the device
};

// Of the process; change it only while no kernel runs. It starts from KVERN_SIMT_ORDER
// (forward|reverse|random), KVERN_SIMT_SEED, KVERN_SIMT_STREAMS (eager|lazy|random),
// KVERN_SIMT_HIDE (1), KVERN_SIMT_DEVICE_BYTES and KVERN_SIMT_PROFILE (a file that gets the
// counters of mem_stats.h when the process ends). What is none of these words aborts.
Config& Current();

const char* Name(Order order);

// What CheckSchedules saw; `problem` is empty if every schedule gave the same bytes and no error.
struct ScheduleReport {
  std::string problem;
  int schedules = 0;
  bool clean() const { return problem.empty(); }
};

// Runs `body` forward, in reverse and with `n_random` seeds and compares the bytes that it returns.
// Stops at the first difference or simt::Error. The configuration is as before afterwards.
ScheduleReport CheckSchedules(int n_random,
                              const std::function<std::vector<unsigned char>()>& body);

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_CONFIG_H_
