// Reads /proc/self; field numbers are those of proc(5).
#include "server/telemetry/process_stats.h"

#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <system_error>
#include <vector>

namespace kvern::telemetry {
namespace {

std::string ReadAll(const char* path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Fields of /proc/self/stat from number 3 on: the name before may hold spaces.
std::vector<double> StatFields() {
  const std::string stat = ReadAll("/proc/self/stat");
  const size_t name_end = stat.rfind(')');
  std::vector<double> fields;
  if (name_end == std::string::npos) return fields;
  std::istringstream rest(stat.substr(name_end + 1));
  std::string state;
  rest >> state;
  fields.push_back(0);
  for (double value; rest >> value;) fields.push_back(value);
  return fields;
}

double BootTimeSeconds() {
  std::istringstream stat(ReadAll("/proc/stat"));
  for (std::string word; stat >> word;) {
    double value = 0;
    if (word == "btime" && stat >> value) return value;
  }
  return 0;
}

}  // namespace

ProcessStats ReadProcessStats() {
  ProcessStats stats;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  const std::vector<double> fields = StatFields();
  const auto field = [&](size_t number) {
    return number - 3 < fields.size() ? fields[number - 3] : 0.0;
  };
  stats.cpu_seconds = (field(14) + field(15)) / ticks;
  stats.start_time_seconds = BootTimeSeconds() + field(22) / ticks;
  stats.virtual_bytes = field(23);
  stats.resident_bytes = field(24) * static_cast<double>(sysconf(_SC_PAGESIZE));
  std::error_code error;
  for (std::filesystem::directory_iterator entry("/proc/self/fd", error), end;
       !error && entry != end; entry.increment(error)) {
    ++stats.open_fds;
  }
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) stats.max_fds = static_cast<double>(limit.rlim_cur);
  return stats;
}

}  // namespace kvern::telemetry
