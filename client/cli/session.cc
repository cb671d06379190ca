// --local is the same path without a socket: the real services over an in-process channel.
#include "client/cli/session.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/cli/errors.h"
#include "kernels/base/status_macros.h"

namespace kvern::cli {
namespace {

constexpr char kGroup[] = "Server";
// A message of protobuf ends at 2 GiB; larger caches go through the store.
constexpr int64_t kMaxInlineBytes = int64_t{1} << 30;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

// `30s`, `5m`, or a number of seconds.
absl::StatusOr<absl::Duration> ParseTimeout(const std::string& text) {
  absl::Duration timeout;
  double seconds = 0;
  if (absl::SimpleAtod(text, &seconds)) {
    timeout = absl::Seconds(seconds);
  } else if (!absl::ParseDuration(text, &timeout)) {
    timeout = absl::ZeroDuration();
  }
  if (timeout <= absl::ZeroDuration()) {
    return UsageError(absl::StrCat("--timeout: got '", text, "', want a time such as 30s or 5m"));
  }
  return timeout;
}

// A path alone means the socket there.
std::string Address(const std::string& server) {
  return absl::StartsWith(server, "/") ? absl::StrCat("unix:", server) : server;
}

Limits LocalLimits(int64_t cache_bytes) {
  Limits limits;
  limits.inline_bytes = std::clamp(cache_bytes, limits.inline_bytes, kMaxInlineBytes);
  // Source and result of one cache at a time, in whole pages.
  limits.store_bytes = std::max(limits.store_bytes, 3 * cache_bytes);
  limits.queued_bytes = std::max(limits.queued_bytes, 4 * cache_bytes);
  limits.max_response_bytes = std::max(limits.max_response_bytes, 2 * cache_bytes);
  return limits;
}

}  // namespace

void AddGlobalFlags(CLI::App* app, GlobalFlags* flags) {
  const auto add = [app](const std::string& name, auto& value, const std::string& help) {
    return app->add_option(name, value, help)->group(kGroup);
  };
  auto* server = add("--server", flags->server,
                     "unix:PATH or HOST:PORT (default: $KVERN_SERVER, else "
                     "unix:$XDG_RUNTIME_DIR/kvern/kvern.sock, else unix:/run/kvern/kvern.sock)")
                     ->type_name("ADDRESS");
  app->add_flag("--local", flags->local, "run the engine in this process, without a server")
      ->group(kGroup)
      ->excludes(server);
  app->add_flag("--json", flags->json, "print JSON instead of tables")->group(kGroup);
  add("--timeout", flags->timeout, "of each call (default 300s)")->type_name("TIME");
  add("--tls-ca", flags->tls.ca, "PEM file: whom to trust over TCP")->type_name("FILE");
  add("--tls-cert", flags->tls.certificate, "PEM file: own certificate")->type_name("FILE");
  add("--tls-key", flags->tls.key, "PEM file: its key")->type_name("FILE");
  add("--backend", flags->backend, "with --local: auto, ref, cpu or cuda; bench: ref or cpu")
      ->type_name("NAME");
  add("--instruction-set", flags->instruction_set,
      "with --local, bench: auto, or one of the cpu backend")
      ->type_name("NAME");
  add("--threads", flags->threads,
      "with --local: worker threads (default: one per core); bench: default 1");
}

std::string DefaultServerAddress() {
  const std::string chosen = Environment("KVERN_SERVER");
  if (!chosen.empty()) return chosen;
  const std::string runtime = Environment("XDG_RUNTIME_DIR");
  const std::string system = "/run/kvern/kvern.sock";
  const std::string own = absl::StrCat(runtime, "/kvern/kvern.sock");
  // A session without a server of its own may still see the machine's.
  const bool use_own =
      !runtime.empty() && (access(own.c_str(), F_OK) == 0 || access(system.c_str(), F_OK) != 0);
  return absl::StrCat("unix:", use_own ? own : system);
}

absl::StatusOr<BackendOptions> LocalBackend(const GlobalFlags& flags) {
  const bool chosen = !flags.backend.empty() || !flags.instruction_set.empty() || flags.threads > 0;
  if (chosen && !flags.local) {
    return UsageError("--backend, --instruction-set, --threads: want --local beside them");
  }
  BackendOptions options;
  if (!flags.backend.empty()) options.name = flags.backend;
  if (!flags.instruction_set.empty()) options.instruction_set = flags.instruction_set;
  options.threads = flags.threads;
  return options;
}

absl::StatusOr<Session> Session::Open(const GlobalFlags& flags, int64_t cache_bytes) {
  client::ClientOptions options;
  KVERN_ASSIGN_OR_RETURN(options.timeout, ParseTimeout(flags.timeout));
  options.tls = flags.tls;
  KVERN_ASSIGN_OR_RETURN(const BackendOptions backend, LocalBackend(flags));
  if (flags.local) {
    KVERN_ASSIGN_OR_RETURN(auto local, InProcessServer::Start(backend, LocalLimits(cache_bytes)));
    client::Client client = client::Client::OverChannel(local->Channel(), options);
    return Session(std::move(local), std::move(client));
  }
  options.connect_timeout = std::min(options.connect_timeout, options.timeout);
  const std::string server = flags.server.empty() ? DefaultServerAddress() : flags.server;
  KVERN_ASSIGN_OR_RETURN(client::Client client, client::Client::Connect(Address(server), options));
  return Session(nullptr, std::move(client));
}

}  // namespace kvern::cli
