// What the sequences of one admitted call run with.
#ifndef KVERN_SERVER_ENGINE_CALL_RUN_H_
#define KVERN_SERVER_ENGINE_CALL_RUN_H_

#include <cstdint>

#include "kernels/backend.h"
#include "server/engine/compress_job.h"
#include "server/engine/engine_events.h"
#include "server/engine/job_stop.h"
#include "server/engine/model_registry.h"
#include "server/engine/policy_cache.h"
#include "server/engine/sequence_memory.h"
#include "server/memory/limits.h"
#include "server/memory/pool.h"
#include "server/memory/store.h"

namespace kvern::engine {

// What all calls run with; all borrowed, outlives the runs.
struct Workplace {
  const Limits& limits;
  Backend& backend;
  const ModelRegistry& models;
  const memory::PoolTable& pools;
  memory::Store& store;
  SequenceMemory& remembered;
  PolicyCache& policies;
  EngineEvents* events;  // may be null
};

// What the sequences of one call share.
struct CallRun {
  const Workplace& workplace;
  const CompressJob& job;
  const RegisteredModel& model;
  const JobStop& stop;
  int64_t response_bytes_left = 0;  // what the call's answer may still grow by
  int64_t queue_us = 0;
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_CALL_RUN_H_
