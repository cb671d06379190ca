// Levels sampled at scrape time: queue, pools, store, limits, build and process.
#ifndef KVERN_SERVER_TELEMETRY_LEVELS_H_
#define KVERN_SERVER_TELEMETRY_LEVELS_H_

#include <functional>
#include <string>
#include <vector>

#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"
#include "server/engine/engine_events.h"
#include "server/memory/limits.h"

namespace kvern::telemetry {

struct LevelsOptions {
  std::function<engine::EngineGauges()> sample;
  Limits limits;
  std::string version;
  std::string commit;
};

class Levels final : public prometheus::Collectable {
 public:
  explicit Levels(LevelsOptions options) : options_(std::move(options)) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const LevelsOptions options_;
};

}  // namespace kvern::telemetry

#endif  // KVERN_SERVER_TELEMETRY_LEVELS_H_
