// CLI11 declares each flag once; the limits come from their table.
#include "server/main/config.h"

#include <cstdlib>
#include <map>
#include <memory>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/main/version.h"
#include "server/main/yaml_config.h"

namespace kvern {
namespace {

constexpr char kFooter[] = R"(
Examples:
  kvernd                                     serve on the default Unix socket
  kvernd --listen unix:/tmp/kvern.sock       serve on another one
  kvernd --listen unix:/run/kvern/kvern.sock --listen 127.0.0.1:7070
  kvernd --config /etc/kvern.yaml --check-config

A configuration file names flags without dashes in front:
  listen: [unix:/run/kvern/kvern.sock]
  store-bytes: 4GiB
  log-format: json
The environment sets any flag too: KVERN_STORE_BYTES=4GiB. Flags win over the environment, which
wins over the file.)";

std::string EnvironmentName(const std::string& flag) {
  std::string name = "KVERN_";
  for (const char c : flag) {
    name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

template <class T>
CLI::Option* AddFlagWithValue(CLI::App& app, const std::string& flag, T& value,
                              const std::string& help) {
  return app.add_option("--" + flag, value, help)->envname(EnvironmentName(flag));
}

// Sizes may be written 4GiB or 512MB; counts take no unit.
void AddLimits(CLI::App& app, Limits& limits) {
  for (const LimitField& field : LimitFields()) {
    int64_t& value = limits.*field.field;
    CLI::Option* option = AddFlagWithValue(app, field.flag, value, field.help);
    if (absl::EndsWith(field.flag, "-bytes")) {
      option->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
    }
    option->check(CLI::Range(int64_t{1}, field.max))->group("Limits")->capture_default_str();
  }
}

// Values that are words of a list.
struct Words {
  std::string log_format = "text";
  std::string log_level = "info";
  std::string store_memory = "auto";
};

void AddDevice(CLI::App& app, BackendOptions& backend, Words& words) {
  AddFlagWithValue(app, "device", backend.device, "GPU of the cuda backend: its index or UUID")
      ->group("Device")
      ->capture_default_str();
  AddFlagWithValue(
      app, "scratch-bytes", backend.scratch_bytes,
      "Device memory reserved at start for scores and copies; 0 is a quarter of what is "
      "free, at most 8 GiB")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 48))
      ->group("Device")
      ->capture_default_str();
  AddFlagWithValue(app, "store-memory", words.store_memory,
                   "Where stored sequences lie: host, device, or auto (the device if there is one)")
      ->check(CLI::IsMember({"auto", "host", "device"}))
      ->group("Device")
      ->capture_default_str();
  AddFlagWithValue(app, "hang-seconds", backend.hang_seconds,
                   "A device that does not finish its work in this time is lost")
      ->check(CLI::Range(0.1, 3600.0))
      ->group("Device")
      ->capture_default_str();
}

void AddServing(CLI::App& app, Config& config, Words& words) {
  AddFlagWithValue(app, "listen", config.listen,
                   "Address to serve on, repeatable: unix:PATH or HOST:PORT. Default: unix:" +
                       DefaultSocketPath());
  AddFlagWithValue(app, "metrics-listen", config.metrics_listen,
                   "HOST:PORT of Prometheus' /metrics; empty for none")
      ->capture_default_str();
  AddFlagWithValue(app, "backend", config.backend.name,
                   "auto (cuda where a device answers, else cpu), ref, cpu or cuda")
      ->check(CLI::IsMember({"auto", "ref", "cpu", "cuda"}))
      ->capture_default_str();
  AddFlagWithValue(app, "instruction-set", config.backend.instruction_set,
                   "Force an instruction set of the cpu backend, for tests and comparisons")
      ->capture_default_str();
  AddFlagWithValue(app, "threads", config.backend.threads,
                   "Threads one call may use; 0 is one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  AddFlagWithValue(app, "models", config.models_dir,
                   "Directory of calibration files (*.safetensors) loaded at start, their models "
                   "registered with them as defaults")
      ->check(CLI::ExistingDirectory);
  AddFlagWithValue(app, "log-format", words.log_format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  AddFlagWithValue(app, "log-level", words.log_level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
}

void AddTls(CLI::App& app, Config& config) {
  AddFlagWithValue(app, "tls-cert", config.tls.cert, "PEM certificate chain for TCP listeners")
      ->check(CLI::ExistingFile)
      ->group("TLS");
  AddFlagWithValue(app, "tls-key", config.tls.key, "PEM private key of --tls-cert")
      ->check(CLI::ExistingFile)
      ->group("TLS");
  AddFlagWithValue(app, "tls-client-ca", config.tls.client_ca,
                   "PEM authority that clients' certificates must be signed by (mutual TLS)")
      ->check(CLI::ExistingFile)
      ->group("TLS");
  app.add_flag("--insecure", config.insecure,
               "Serve TCP beyond loopback without TLS: anyone who reaches the port can read caches")
      ->envname("KVERN_INSECURE")
      ->group("TLS");
}

void ApplyWords(const Words& words, Config& config) {
  using telemetry::LogLevel;
  const std::map<std::string, LogLevel> levels = {{"debug", LogLevel::kDebug},
                                                  {"info", LogLevel::kInfo},
                                                  {"warning", LogLevel::kWarning},
                                                  {"error", LogLevel::kError}};
  config.log_level = levels.at(words.log_level);
  if (words.log_format == "json") config.log_format = telemetry::LogFormat::kJson;
  using engine::StorePlace;
  const std::map<std::string, StorePlace> places = {
      {"auto", StorePlace::kAuto}, {"host", StorePlace::kHost}, {"device", StorePlace::kDevice}};
  config.store_place = places.at(words.store_memory);
}

}  // namespace

std::string DefaultSocketPath() {
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  const std::string directory = runtime != nullptr && *runtime != '\0' ? runtime : "/run";
  return directory + "/kvern/kvern.sock";
}

bool IsLoopback(const std::string& host_port) {
  return absl::StartsWith(host_port, "127.") || absl::StartsWith(host_port, "localhost:") ||
         absl::StartsWith(host_port, "[::1]:");
}

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments) {
  CommandLine parsed;
  Config& config = parsed.config;
  config.metrics_listen = "127.0.0.1:9464";
  Words words;
  bool check = false;
  CLI::App app("kvernd, the Kvern server: compresses KV caches for serving stacks.", "kvernd");
  app.footer(kFooter);
  app.set_version_flag("--version", std::string("kvernd ") + Version() + " (" + Commit() + ")");
  app.config_formatter(std::make_shared<YamlConfig>());
  app.set_config("--config", "", "YAML file of flags, see below");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.add_flag("--check-config", check, "Check flags, environment and file, and exit")
      ->configurable(false);
  AddServing(app, config, words);
  AddTls(app, config);
  AddDevice(app, config.backend, words);
  AddLimits(app, config.limits);
  std::vector<std::string> reversed;
  for (auto argument = arguments.rbegin(); argument != arguments.rend(); ++argument) {
    // CLI11 takes `--flag ""` for an empty value, and `--flag=` for a missing one.
    const bool empties = absl::StartsWith(*argument, "--") && absl::EndsWith(*argument, "=");
    if (empties) reversed.emplace_back();
    reversed.push_back(empties ? argument->substr(0, argument->size() - 1) : *argument);
  }
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::CallForHelp&) {
    parsed.action = Action::kPrinted;
    parsed.text = app.help();
    return parsed;
  } catch (const CLI::CallForVersion& version) {
    parsed.action = Action::kPrinted;
    parsed.text = std::string(version.what()) + "\n";
    return parsed;
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(error.what(), " (kvernd --help lists all flags)"));
  }
  ApplyWords(words, config);
  if (config.listen.empty()) config.listen.push_back("unix:" + DefaultSocketPath());
  parsed.action = check ? Action::kCheck : Action::kServe;
  if (absl::Status status = CheckConfig(config); !status.ok()) return status;
  return parsed;
}

absl::Status CheckConfig(const Config& config) {
  if (config.tls.cert.empty() != config.tls.key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key: got one, want both or neither");
  }
  if (!config.tls.client_ca.empty() && config.tls.cert.empty()) {
    return absl::InvalidArgumentError("--tls-client-ca: want --tls-cert and --tls-key too");
  }
  const bool on_host = config.backend.name == "ref" || config.backend.name == "cpu";
  if (config.store_place == engine::StorePlace::kDevice && on_host) {
    return absl::InvalidArgumentError(absl::StrCat("--store-memory: got device with --backend ",
                                                   config.backend.name,
                                                   ", which works on the host; want host or auto"));
  }
  for (const std::string& address : config.listen) {
    if (absl::StartsWith(address, "unix:")) {
      const std::string path = address.substr(5);
      if (path.empty() || path.front() != '/' || path.size() > 90) {
        return absl::InvalidArgumentError(
            absl::StrCat("--listen: got ", address,
                         ", want unix: and an absolute path of at most 90 characters"));
      }
      continue;
    }
    if (address.rfind(':') == std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("--listen: got ", address, ", want unix:PATH or HOST:PORT"));
    }
    if (!IsLoopback(address) && config.tls.cert.empty() && !config.insecure) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--listen ", address,
          " is reachable from other hosts: want --tls-cert and --tls-key, or --insecure"));
    }
  }
  return absl::OkStatus();
}

}  // namespace kvern
