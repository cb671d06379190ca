// What kvernd was told: flags, environment and a YAML file of the same names.
#ifndef KVERN_SERVER_MAIN_CONFIG_H_
#define KVERN_SERVER_MAIN_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backends.h"
#include "server/engine/engine.h"
#include "server/memory/limits.h"
#include "server/telemetry/call_log.h"

namespace kvern {

struct TlsFiles {
  std::string cert;       // PEM chain; empty: no TLS
  std::string key;        // PEM
  std::string client_ca;  // PEM; not empty: clients must present a certificate it signed
};

struct Config {
  std::vector<std::string> listen;  // "unix:PATH" or "HOST:PORT"
  std::string metrics_listen;       // HOST:PORT; empty: none
  BackendOptions backend;
  engine::StorePlace store_place = engine::StorePlace::kAuto;
  std::string models_dir;  // calibrations loaded at start; empty: none
  telemetry::LogFormat log_format = telemetry::LogFormat::kText;
  telemetry::LogLevel log_level = telemetry::LogLevel::kInfo;
  TlsFiles tls;
  bool insecure = false;  // allows TCP off loopback without TLS
  Limits limits;
};

enum class Action : uint8_t { kServe, kCheck, kPrinted };
struct CommandLine {
  Action action = Action::kServe;
  Config config;
  std::string text;  // of kPrinted: help or version, for stdout
};

// The socket of a machine's default server: under $XDG_RUNTIME_DIR, else /run.
std::string DefaultSocketPath();

// Flags win over --config. Errors: InvalidArgument with one line that says what to change.
absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments);

// What no single flag can see: TCP off loopback needs TLS or --insecure, TLS needs both files, a
// store on a device needs a backend with one. Errors: InvalidArgument.
absl::Status CheckConfig(const Config& config);

// True for 127.0.0.0/8, [::1] and localhost.
bool IsLoopback(const std::string& host_port);

}  // namespace kvern

#endif  // KVERN_SERVER_MAIN_CONFIG_H_
