// Counts what the engine does.
#ifndef KVERN_SERVER_TELEMETRY_ENGINE_METRICS_H_
#define KVERN_SERVER_TELEMETRY_ENGINE_METRICS_H_

#include <map>
#include <string>
#include <vector>

#include "prometheus/counter.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "server/engine/engine_events.h"

namespace kvern::telemetry {

// Children are resolved at construction: an event costs a few map look-ups in small constant maps
// and no family lock.
class EngineMetrics final : public engine::EngineEvents {
 public:
  explicit EngineMetrics(prometheus::Registry& registry);

  void OnSequence(const engine::SequenceResult& result, memory::EngineLabel engine) override;
  void OnStage(const std::string& stage, const std::string& name, double seconds) override;
  void OnRejected(engine::Rejection reason) override;
  void OnReplay(memory::EngineLabel engine) override;
  void OnEpochConflict(memory::EngineLabel engine) override;
  void OnPoisoned(memory::EngineLabel engine) override;
  void OnPoolEvent(engine::PoolEvent event) override;
  void OnStoreEviction() override;

 private:
  struct OfPolicy {
    std::map<std::string, prometheus::Counter*> sequences;  // by "outcome/reason"
    prometheus::Counter* tokens_in;
    prometheus::Counter* tokens_kept;
    prometheus::Counter* tokens_dropped;
    std::vector<prometheus::Counter*> blocks_freed;  // by engine
    std::vector<prometheus::Counter*> bytes_freed;   // by engine
    prometheus::Histogram* keep_ratio;
    prometheus::Histogram* loss_ratio;
  };

  void AddPolicies(prometheus::Registry& registry);
  void AddCounts(prometheus::Registry& registry);
  OfPolicy& Of(const std::string& preset);

  std::map<std::string, OfPolicy> policies_;
  std::map<std::pair<std::string, std::string>, prometheus::Histogram*> stages_;
  std::map<std::string, prometheus::Counter*> moved_bytes_;  // by direction
  std::vector<prometheus::Counter*> rejected_;               // by engine::Rejection
  std::vector<prometheus::Counter*> pool_events_;            // by engine::PoolEvent
  std::vector<prometheus::Counter*> replays_;                // by engine
  std::vector<prometheus::Counter*> epoch_conflicts_;        // by engine
  std::vector<prometheus::Counter*> poisoned_;               // by engine
  prometheus::Counter* store_evictions_;
};

// Seconds of in-process latencies, 50 us to 10 s.
const prometheus::Histogram::BucketBoundaries& LatencyBuckets();

}  // namespace kvern::telemetry

#endif  // KVERN_SERVER_TELEMETRY_ENGINE_METRICS_H_
