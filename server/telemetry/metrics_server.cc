// prometheus-cpp's exposer, with its exceptions turned into statuses.
#include "server/telemetry/metrics_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <exception>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvern::telemetry {
namespace {

// One connection to the exposer's port: its accept loop polls every two seconds and would hold the
// end of the process for as long; a connection wakes it.
void Nudge(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  (void)connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  close(fd);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& address,
                                                                    const Metrics& metrics,
                                                                    LevelsOptions levels) {
  std::unique_ptr<prometheus::Exposer> exposer;
  try {
    exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/2);
  } catch (const std::exception&) {
    return absl::UnavailableError(
        absl::StrCat("metrics: cannot listen on ", address,
                     "; want a free HOST:PORT (--metrics-listen, or --metrics-listen= for none)"));
  }
  const std::vector<int> ports = exposer->GetListeningPorts();
  auto collectable = std::make_shared<Levels>(std::move(levels));
  exposer->RegisterCollectable(metrics.Registry());
  exposer->RegisterCollectable(collectable);
  return std::unique_ptr<MetricsServer>(new MetricsServer(
      std::move(exposer), std::move(collectable), ports.empty() ? 0 : ports.front()));
}

MetricsServer::~MetricsServer() {
  const auto stopped = std::async(std::launch::async, [this] { exposer_.reset(); });
  // Again and again: a connection that comes before the loop is told to end lets it wait anew.
  do {
    Nudge(port_);
  } while (stopped.wait_for(std::chrono::milliseconds(10)) != std::future_status::ready);
}

}  // namespace kvern::telemetry
