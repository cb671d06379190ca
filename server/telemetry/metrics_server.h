// Serves /metrics on a port of its own.
#ifndef KVERN_SERVER_TELEMETRY_METRICS_SERVER_H_
#define KVERN_SERVER_TELEMETRY_METRICS_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "prometheus/exposer.h"
#include "prometheus/registry.h"
#include "server/telemetry/engine_metrics.h"
#include "server/telemetry/levels.h"
#include "server/telemetry/rpc_metrics.h"

namespace kvern::telemetry {

// All families of the process. Lives as long as the engine and services that report to it.
class Metrics {
 public:
  Metrics() : engine_(*registry_), rpc_(*registry_) {}

  engine::EngineEvents& Engine() { return engine_; }
  engine::RpcEvents& Rpc() { return rpc_; }
  std::shared_ptr<prometheus::Registry> Registry() const { return registry_; }

 private:
  const std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  EngineMetrics engine_;
  RpcMetrics rpc_;
};

class MetricsServer {
 public:
  // `address`: HOST:PORT, port 0 picks one. Errors: Unavailable when it cannot listen there.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& address,
                                                              const Metrics& metrics,
                                                              LevelsOptions levels);
  ~MetricsServer();
  int Port() const { return port_; }

 private:
  MetricsServer(std::unique_ptr<prometheus::Exposer> exposer, std::shared_ptr<Levels> levels,
                int port)
      : levels_(std::move(levels)), exposer_(std::move(exposer)), port_(port) {}

  std::shared_ptr<Levels> levels_;  // the exposer holds it weakly
  std::unique_ptr<prometheus::Exposer> exposer_;
  int port_;
};

}  // namespace kvern::telemetry

#endif  // KVERN_SERVER_TELEMETRY_METRICS_SERVER_H_
