// The engine: who may run when. Admits calls, leases memory, has the pipeline plan and execute,
// publishes, remembers. Knows no maths and no wire.
#ifndef KVERN_SERVER_ENGINE_ENGINE_H_
#define KVERN_SERVER_ENGINE_ENGINE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "server/engine/chosen_plan.h"
#include "server/engine/compress_job.h"
#include "server/engine/engine_events.h"
#include "server/engine/model_registry.h"
#include "server/memory/limits.h"
#include "server/memory/pool.h"
#include "server/memory/store.h"

namespace kvern::engine {

// Where stored sequences lie.
enum class StorePlace : uint8_t { kAuto, kHost, kDevice };  // kAuto: where the backend works

struct EngineOptions {
  Limits limits;
  std::unique_ptr<Backend> backend;
  StorePlace store_place = StorePlace::kAuto;
  EngineEvents* events = nullptr;  // not owned, may be null
};

// Thread-safe. One worker thread drives the backend (which spreads ops over its own threads).
class Engine {
 public:
  // Errors: InvalidArgument for StorePlace::kDevice on the host; ResourceExhausted where the store
  // finds no room.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(EngineOptions options);
  ~Engine();

  using Done = std::function<void(absl::StatusOr<CompressResult>)>;
  // Admits the job and returns; `done` runs exactly once, on a worker thread or, for refusals and
  // replays, on the caller's. Whole-call errors: Unavailable (draining); ResourceExhausted (queue);
  // DeadlineExceeded / Cancelled before anything moved; InvalidArgument (request_id reused);
  // NotFound/MODEL_UNKNOWN; Unavailable/DEVICE_LOST. Faults of one sequence are in its result.
  void Compress(CompressJob job, Done done);
  absl::StatusOr<CompressResult> CompressAndWait(CompressJob job);

  // The first of two phases: validates the job, which has no request_id, and keeps what was chosen
  // for `patience`. Errors: as Compress; ResourceExhausted/QUOTA when there are too many plans.
  void Plan(CompressJob job, absl::Duration patience,
            std::function<void(absl::StatusOr<Planned>)> done);
  // The second one: moves it. Errors: as Compress; of PlanBook::Claim and JobOf;
  // FailedPrecondition/ PLAN_STALE, also as the fault of one sequence. A call that fails as a whole
  // leaves the plan.
  void Apply(ApplyJob job, Done done);

  // Forgets epochs, positions and plans of paged sequences; lets stored ones be evicted.
  int64_t Release(const std::vector<std::string>& sequence_ids);

  ModelRegistry& Models();
  memory::PoolTable& Pools();
  memory::AttachmentTable& Attachments();
  memory::Store& Store();
  EngineEvents* Events() const;  // may be null; RegisterPool and UnregisterPool tell it
  const Limits& GetLimits() const;
  absl::string_view BackendName() const;
  absl::string_view InstructionSet() const;
  std::optional<DeviceFacts> Device() const;  // none: the backend works on the host
  EngineGauges Gauges() const;
  // Not ok for ever once the backend's device is lost: then no call is taken any more.
  absl::Status Health() const;
  // Unavailable/DEVICE_LOST where the store lies on a device that is lost.
  absl::Status StoreHealth() const;

  // Decodes a packed stored sequence into dense K and V [layers, kv_heads, num_tokens, head_dim] on
  // the worker. Errors: as Compress.
  absl::Status DecodeStored(const memory::StoredSequence& sequence, absl::Time deadline,
                            std::vector<std::byte>* k, std::vector<std::byte>* v);
  // Copies the tokens of a dense stored sequence into the first slots of a longer one that is not
  // yet published, on the worker. Errors: as Compress.
  absl::Status CopyStored(const memory::StoredSequence& from, const memory::StoredSequence& to,
                          absl::Time deadline);

  // Refuses new calls from now on; returns when the admitted ones ended or the time is up.
  // True when all ended.
  bool Drain(absl::Duration patience);

 private:
  struct Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_ENGINE_H_
