// The server a command talks to: a running one, or with --local the engine in this process.
#ifndef KVERN_CLIENT_CLI_SESSION_H_
#define KVERN_CLIENT_CLI_SESSION_H_

#include <cstdint>
#include <memory>
#include <string>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"
#include "client/cpp/client.h"
#include "server/main/in_process.h"

namespace kvern::cli {

// Flags that stand before or after the verb.
struct GlobalFlags {
  std::string server;
  bool local = false;
  bool json = false;
  std::string timeout = "300s";
  client::TlsFiles tls;
  std::string backend;
  std::string instruction_set;
  int threads = 0;
};

void AddGlobalFlags(CLI::App* app, GlobalFlags* flags);

// $KVERN_SERVER, else the socket below $XDG_RUNTIME_DIR, else the one below /run.
std::string DefaultServerAddress();

class Session {
 public:
  // `cache_bytes`: the largest cache the command will send, which --local makes room for.
  // Errors: Unavailable; usage errors of the flags; of InProcessServer::Start.
  static absl::StatusOr<Session> Open(const GlobalFlags& flags, int64_t cache_bytes = 0);

  const client::Client& Client() const { return client_; }

 private:
  Session(std::unique_ptr<InProcessServer> local, client::Client client)
      : local_(std::move(local)), client_(std::move(client)) {}
  std::unique_ptr<InProcessServer> local_;  // outlives client_
  client::Client client_;
};

// --backend, --instruction-set and --threads. Errors: a usage error when they are given without
// --local, which only then choose anything.
absl::StatusOr<BackendOptions> LocalBackend(const GlobalFlags& flags);

}  // namespace kvern::cli

#endif  // KVERN_CLIENT_CLI_SESSION_H_
