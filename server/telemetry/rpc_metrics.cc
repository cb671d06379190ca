// The families of the wire.
#include "server/telemetry/rpc_metrics.h"

#include "server/telemetry/engine_metrics.h"
#include "server/telemetry/labels.h"

namespace kvern::telemetry {

RpcMetrics::RpcMetrics(prometheus::Registry& registry) {
  auto& requests = prometheus::BuildCounter()
                       .Name("kvern_rpc_requests_total")
                       .Help("Finished RPCs, by canonical status code.")
                       .Register(registry);
  auto& seconds = prometheus::BuildHistogram()
                      .Name("kvern_rpc_duration_seconds")
                      .Help("Time from the first byte of an RPC to its status.")
                      .Register(registry);
  auto& in_flight = prometheus::BuildGauge()
                        .Name("kvern_rpc_in_flight")
                        .Help("RPCs that have started and not finished.")
                        .Register(registry);
  for (int index = 0; index < engine::kRpcCount; ++index) {
    const auto rpc = static_cast<engine::Rpc>(index);
    const std::string name = engine::Name(rpc);
    OfRpc& of = rpcs_[index];
    for (const absl::StatusCode code : CodesOf(rpc)) {
      of.requests[code] = &requests.Add({{"rpc", name}, {"code", CodeLabel(code)}});
    }
    of.seconds = &seconds.Add({{"rpc", name}}, LatencyBuckets());
    of.in_flight = &in_flight.Add({{"rpc", name}});
  }
}

void RpcMetrics::OnStart(engine::Rpc rpc) { rpcs_[static_cast<int>(rpc)].in_flight->Increment(); }

void RpcMetrics::OnEnd(const engine::RpcEnd& end) {
  OfRpc& of = rpcs_[static_cast<int>(end.rpc)];
  auto counter = of.requests.find(end.code);
  if (counter == of.requests.end()) counter = of.requests.find(absl::StatusCode::kUnknown);
  counter->second->Increment();
  of.seconds->Observe(end.seconds);
  of.in_flight->Decrement();
}

}  // namespace kvern::telemetry
