// What observers may see of the engine. Called from workers; implementations are thread-safe, do
// not block and do not call back. Never carries KV bytes or client ids.
#ifndef KVERN_SERVER_ENGINE_ENGINE_EVENTS_H_
#define KVERN_SERVER_ENGINE_ENGINE_EVENTS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "server/engine/compress_job.h"
#include "server/memory/pool.h"

namespace kvern::engine {

enum class Rejection : uint8_t { kQueueFull, kDeadline, kQuota, kEpoch, kShapeClass, kDraining };
enum class PoolEvent : uint8_t { kRegister, kUnregister, kPeerDied };

class EngineEvents {
 public:
  virtual ~EngineEvents() = default;
  virtual void OnSequence(const SequenceResult& result, memory::EngineLabel engine) = 0;
  virtual void OnStage(const std::string& stage, const std::string& name, double seconds) = 0;
  virtual void OnRejected(Rejection reason) = 0;
  virtual void OnReplay(memory::EngineLabel engine) = 0;
  virtual void OnEpochConflict(memory::EngineLabel engine) = 0;
  virtual void OnPoisoned(memory::EngineLabel engine) = 0;
  virtual void OnPoolEvent(PoolEvent event) = 0;
  virtual void OnStoreEviction() = 0;
};

// Plans that wait, and how others ended.
struct PlanLevels {
  int64_t plans = 0;
  int64_t bytes = 0;
  int64_t made = 0, applied = 0, expired = 0, released = 0;  // since start
};

// Levels sampled at scrape time.
struct EngineGauges {
  int64_t queue_depth = 0;
  double queue_oldest_seconds = 0;
  int64_t queued_bytes = 0;
  struct Pools {
    int64_t count = 0;
    int64_t mapped_bytes = 0;
  };
  Pools host_pools[6] = {};  // by EngineLabel
  Pools device_pools[6] = {};
  int64_t store_sequences = 0;
  int64_t store_used_bytes = 0;
  int64_t store_capacity_bytes = 0;
  bool store_on_device = false;
  int64_t attachments = 0;
  int64_t remembered_sequences = 0;
  int64_t replay_evictions = 0;  // since start
  int64_t observed_bytes = 0;    // statistics of observed queries
  PlanLevels plans;
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_ENGINE_EVENTS_H_
