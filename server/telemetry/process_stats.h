// What the kernel says of this process (the `process_*` metrics every exporter has).
#ifndef KVERN_SERVER_TELEMETRY_PROCESS_STATS_H_
#define KVERN_SERVER_TELEMETRY_PROCESS_STATS_H_

namespace kvern::telemetry {

struct ProcessStats {
  double cpu_seconds = 0;
  double resident_bytes = 0;
  double virtual_bytes = 0;
  double start_time_seconds = 0;  // Unix time
  double open_fds = 0;
  double max_fds = 0;
};

// Fields that /proc does not give stay 0.
ProcessStats ReadProcessStats();

}  // namespace kvern::telemetry

#endif  // KVERN_SERVER_TELEMETRY_PROCESS_STATS_H_
