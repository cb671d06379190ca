// Counts and times every RPC.
#ifndef KVERN_SERVER_TELEMETRY_RPC_METRICS_H_
#define KVERN_SERVER_TELEMETRY_RPC_METRICS_H_

#include <array>
#include <map>

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "server/engine/rpc_events.h"

namespace kvern::telemetry {

class RpcMetrics final : public engine::RpcEvents {
 public:
  explicit RpcMetrics(prometheus::Registry& registry);

  void OnStart(engine::Rpc rpc) override;
  void OnEnd(const engine::RpcEnd& end) override;

 private:
  struct OfRpc {
    std::map<absl::StatusCode, prometheus::Counter*> requests;
    prometheus::Histogram* seconds = nullptr;
    prometheus::Gauge* in_flight = nullptr;
  };
  std::array<OfRpc, engine::kRpcCount> rpcs_;
};

}  // namespace kvern::telemetry

#endif  // KVERN_SERVER_TELEMETRY_RPC_METRICS_H_
