// The configuration comes from the environment, so that whole programs run under any schedule.
#include "simt/config.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "simt/grid.h"
#include "simt/machine.h"

namespace simt {
namespace {

// Empty if the variable is not set.
std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

[[noreturn]] void Reject(const char* name, const std::string& value) {
  std::fprintf(stderr, "simt: %s=%s is not understood\n", name, value.c_str());
  std::abort();
}

uint64_t NumberOr(uint64_t value, const char* name) {
  const std::string text = Variable(name);
  if (text.empty()) return value;
  char* end = nullptr;
  const uint64_t number = std::strtoull(text.c_str(), &end, 10);
  if (*end != '\0') Reject(name, text);
  return number;
}

Config FromEnvironment() {
  Config config;
  const std::string order = Variable("KVERN_SIMT_ORDER");
  if (order == "reverse") {
    config.order = Order::kReverse;
  } else if (order == "random") {
    config.order = Order::kRandom;
  } else if (!order.empty() && order != "forward") {
    Reject("KVERN_SIMT_ORDER", order);
  }
  const std::string streams = Variable("KVERN_SIMT_STREAMS");
  if (streams == "eager") {
    config.streams = StreamMode::kEager;
  } else if (streams == "random") {
    config.streams = StreamMode::kRandom;
  } else if (!streams.empty() && streams != "lazy") {
    Reject("KVERN_SIMT_STREAMS", streams);
  }
  config.profile = !Variable("KVERN_SIMT_PROFILE").empty();
  config.seed = NumberOr(config.seed, "KVERN_SIMT_SEED");
  config.hide_device_memory = NumberOr(0, "KVERN_SIMT_HIDE") != 0;
  config.device_bytes = NumberOr(config.device_bytes, "KVERN_SIMT_DEVICE_BYTES");
  return config;
}

// Where two outputs part, or nothing.
std::string Difference(const std::vector<unsigned char>& a, const std::vector<unsigned char>& b) {
  if (a.size() != b.size()) {
    return std::to_string(b.size()) + " bytes instead of " + std::to_string(a.size());
  }
  size_t first = a.size();
  size_t count = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    if (count++ == 0) first = i;
  }
  if (count == 0) return "";
  return std::to_string(count) + " of " + std::to_string(a.size()) +
         " bytes differ from the forward order, the first at " + std::to_string(first);
}

}  // namespace

Config& Current() {
  static Config config = FromEnvironment();
  return config;
}

const char* Name(Order order) {
  switch (order) {
    case Order::kForward:
      return "forward";
    case Order::kReverse:
      return "reverse";
    case Order::kRandom:
      return "random";
  }
  return "unknown";
}

ScheduleReport CheckSchedules(int n_random,
                              const std::function<std::vector<unsigned char>()>& body) {
  const Config before = Current();
  ScheduleReport report;
  std::vector<unsigned char> expected;
  for (int i = 0; i < n_random + 2 && report.clean(); ++i) {
    Current().order = i == 0 ? Order::kForward : i == 1 ? Order::kReverse : Order::kRandom;
    Current().seed = i < 2 ? before.seed : before.seed + static_cast<uint64_t>(i - 1);
    RestartGridNumbers();
    ++report.schedules;
    try {
      std::vector<unsigned char> bytes = body();
      if (i == 0) expected = bytes;
      const std::string difference = Difference(expected, bytes);
      if (!difference.empty()) {
        report.problem = std::string("order ") + Name(Current().order) + ", seed " +
                         std::to_string(Current().seed) + ": " + difference;
      }
    } catch (const Error& error) {
      report.problem = error.what();
    }
  }
  Current() = before;
  return report;
}

}  // namespace simt
