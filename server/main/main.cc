// kvernd: starts the server, waits for a signal, drains.
#include <grpc/grpc.h>
#include <malloc.h>
#include <pthread.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "server/main/config.h"
#include "server/main/server.h"
#include "server/telemetry/call_log.h"

namespace kvern {
namespace {

constexpr int kRefused = 1;
constexpr int kUsage = 2;

// Before any thread exists: signals are waited for, freed memory stays ours (a fresh page costs
// more than the copy into it), and a crash leaves no cache on disk.
sigset_t PrepareProcess() {
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const rlimit no_core = {0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  // One more than gRPC counts down: its own shutdown may wait ten seconds for a poller of its own,
  // and a process that ends needs none.
  grpc_init();
  return signals;
}

int Serve(const Config& config, const sigset_t& signals) {
  using telemetry::Log;
  using telemetry::LogLevel;
  telemetry::StartLog(config.log_format, config.log_level);
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(config);
  if (!server.ok()) {
    Log(LogLevel::kError, server.status().message());
    return kRefused;
  }
  Log(LogLevel::kInfo, (*server)->Summary());
  int signal = 0;
  sigwait(&signals, &signal);
  Log(LogLevel::kInfo, "draining: new calls are refused, running ones finish");
  const bool finished = (*server)->Drain();
  Log(finished ? LogLevel::kInfo : LogLevel::kWarning,
      finished ? "stopped" : "stopped with calls still running: the drain limit was reached");
  return 0;
}

int Main(int argc, char** argv) {
  const sigset_t signals = PrepareProcess();
  const absl::StatusOr<CommandLine> line =
      ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc));
  if (!line.ok()) {
    std::fprintf(stderr, "kvernd: %s\n", std::string(line.status().message()).c_str());
    return kUsage;
  }
  if (line->action == Action::kPrinted) {
    std::fputs(line->text.c_str(), stdout);
    return 0;
  }
  if (line->action == Action::kCheck) {
    for (const std::string& address : line->config.listen) {
      std::printf("listens on %s\n", address.c_str());
    }
    std::puts("configuration is good");
    return 0;
  }
  return Serve(line->config, signals);
}

}  // namespace
}  // namespace kvern

int main(int argc, char** argv) { return kvern::Main(argc, argv); }
