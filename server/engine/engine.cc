// Admission: who may run at all, who gets an earlier answer, who waits in line.
#include "server/engine/engine.h"

#include <atomic>
#include <cstdlib>
#include <future>
#include <new>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/reuse.h"
#include "kernels/base/status_macros.h"
#include "server/engine/copy_stored.h"
#include "server/engine/decode_stored.h"
#include "server/engine/failpoint.h"
#include "server/engine/job_stop.h"
#include "server/engine/plan_book.h"
#include "server/engine/policy_cache.h"
#include "server/engine/replay_cache.h"
#include "server/engine/run_call.h"
#include "server/engine/sequence_memory.h"
#include "server/engine/work_queue.h"

namespace kvern::engine {
namespace {

using memory::EngineLabel;

constexpr size_t kKnownPolicies = 64;
constexpr int64_t kRememberedBytes = int64_t{256} << 20;  // of positions, over all sequences

using SharedJob = std::shared_ptr<const CompressJob>;

absl::StatusOr<std::unique_ptr<memory::StoreMemory>> MakeStoreMemory(
    StorePlace place, const Limits& limits, const std::shared_ptr<Backend>& backend) {
  const bool has_device = backend->Device().has_value();
  if (place == StorePlace::kDevice && !has_device) {
    return absl::InvalidArgumentError(
        absl::StrCat("--store-memory: got device with the ", backend->Name(),
                     " backend, which works on the host; want host or auto"));
  }
  if (place == StorePlace::kHost || !has_device) return memory::MapHostStore(limits.store_bytes);
  auto memory = memory::AllocateDeviceStore(backend, limits.store_bytes);
  if (!absl::IsResourceExhausted(memory.status())) return memory;
  return absl::ResourceExhaustedError(absl::StrCat(
      "store: ", limits.store_bytes, " bytes do not fit the device; want fewer --store-bytes, or ",
      "--store-memory host (", memory.status().message(), ")"));
}

}  // namespace

struct Engine::Impl {
  explicit Impl(EngineOptions options)
      : limits(options.limits),
        backend(std::move(options.backend)),
        events(options.events),
        models(limits),
        pools(limits, &attachments, [this](const DeviceHandle& handle) { return Import(handle); }),
        remembered(limits.sequences, kRememberedBytes),
        replays(limits),
        plans(limits) {}

  struct Admitted;
  void Admit(SharedJob job, Done done);
  void AdmitUnlessDraining(SharedJob job, Done done);
  void Enqueue(const SharedJob& job, Done done);
  void EnqueuePlanned(const ApplyJob& apply, Done done);
  absl::StatusOr<CompressResult> Run(const CompressJob& job, const RegisteredModel& model,
                                     absl::Duration waited);
  void AnswerWaiter(const SharedJob& job, const Done& done, const ReplayCache::Answer& answer);
  EngineLabel LabelOf(const CompressJob& job) const;
  JobStop StopOf(const CompressJob& job) const {
    return JobStop(job.deadline, job.cancelled, &shutdown);
  }
  absl::Status DeviceStatus() const;
  absl::StatusOr<std::unique_ptr<DeviceMapping>> Import(const DeviceHandle& handle) const;
  void Reject(const absl::Status& status);
  void TellEvictions();
  // Runs `work` on the worker, bound to the deadline, and waits. Errors: as Compress.
  absl::Status RunOnWorker(int64_t bytes, absl::Time deadline,
                           const std::function<absl::Status()>& work);

  const Limits limits;
  const std::shared_ptr<Backend> backend;  // a store on its device may outlive the engine
  EngineEvents* const events;
  ModelRegistry models;
  memory::AttachmentTable attachments;
  memory::PoolTable pools;
  std::unique_ptr<memory::Store> store;
  SequenceMemory remembered;
  PolicyCache policies{kKnownPolicies};
  ReplayCache replays;
  PlanBook plans;
  std::atomic<bool> shutdown{false};
  std::atomic<int64_t> told_evictions{0};
  std::unique_ptr<WorkQueue> queue;  // last: its tasks use all of the above
};

absl::Status Engine::Impl::RunOnWorker(int64_t bytes, absl::Time deadline,
                                       const std::function<absl::Status()>& work) {
  const JobStop stop(deadline, nullptr, &shutdown);
  const auto ended = std::make_shared<std::promise<absl::Status>>();
  const auto end = [ended](absl::Status outcome) { ended->set_value(std::move(outcome)); };
  WorkQueue::Task task;
  task.bytes = bytes;
  task.run = [&, end](absl::Duration) {
    const BoundStop bound(*backend, &stop, nullptr);
    const absl::Status wanted = stop.Check();
    end(wanted.ok() ? work() : wanted);
  };
  task.refuse = end;
  const absl::Status taken = queue->Submit(std::move(task));
  if (taken.ok()) return ended->get_future().get();
  Reject(taken);
  return taken;
}

absl::Status Engine::Impl::DeviceStatus() const {
  const absl::Status health = backend->Health();
  if (health.ok()) return health;
  return WithReason(absl::UnavailableError(absl::StrCat(
                        "server: lost its device, nothing changed (", health.message(), ")")),
                    "DEVICE_LOST");
}

absl::StatusOr<std::unique_ptr<DeviceMapping>> Engine::Impl::Import(
    const DeviceHandle& handle) const {
  KVERN_RETURN_IF_ERROR(DeviceStatus());
  auto mapping = backend->Import(handle);
  KVERN_RETURN_IF_ERROR(DeviceStatus());  // what it found may be that the device is lost
  return mapping;
}

void Engine::Impl::Reject(const absl::Status& status) {
  if (events == nullptr) return;
  if (ReasonOf(status) == "DRAINING") events->OnRejected(Rejection::kDraining);
  if (absl::IsDeadlineExceeded(status)) events->OnRejected(Rejection::kDeadline);
  if (ReasonOf(status) == "QUEUE_FULL") events->OnRejected(Rejection::kQueueFull);
}

EngineLabel Engine::Impl::LabelOf(const CompressJob& job) const {
  for (const SequenceJob& sequence : job.sequences) {
    const auto* paged = std::get_if<PagedSource>(&sequence.source);
    if (paged == nullptr) continue;
    const auto pool = pools.Find(paged->pool);
    if (pool.ok()) return (*pool)->spec.engine;
  }
  return EngineLabel::kOther;
}

void Engine::Impl::TellEvictions() {
  if (events == nullptr) return;
  const int64_t evictions = store->Evictions();
  int64_t told = told_evictions.load();
  while (told < evictions) {
    if (told_evictions.compare_exchange_weak(told, told + 1)) {
      events->OnStoreEviction();
      ++told;
    }
  }
}

absl::StatusOr<CompressResult> Engine::Impl::Run(const CompressJob& job,
                                                 const RegisteredModel& model,
                                                 absl::Duration waited) {
  KVERN_RETURN_IF_ERROR(DeviceStatus());
  const Workplace workplace = {limits, *backend,   models,   pools,
                               *store, remembered, policies, events};
  const JobStop stop = StopOf(job);
  auto answer = RunCall(
      {workplace, job, model, stop, limits.max_response_bytes, absl::ToInt64Microseconds(waited)});
  TellEvictions();
  return answer;
}

// A call in the queue.
struct Engine::Impl::Admitted final : Recycled<Admitted> {
  Impl* engine;
  SharedJob job;
  std::shared_ptr<const RegisteredModel> model;
  Done done;
};

void Engine::Impl::Enqueue(const SharedJob& job, Done done) {
  if (job->apply != nullptr) return EnqueuePlanned(*job->apply, std::move(done));
  auto model = models.Find(job->model);
  absl::Status status = model.status();
  if (status.ok()) status = StopOf(*job).Check();
  if (status.ok()) {
    // Its address alone fits a function that asks for no memory; one of both takes it.
    std::unique_ptr<Admitted> admitted(
        new Admitted{{}, this, job, *std::move(model), std::move(done)});
    WorkQueue::Task task;
    task.bytes = job->payload_bytes;
    task.run = [call = admitted.get()](absl::Duration waited) {
      const std::unique_ptr<Admitted> own(call);
      own->done(own->engine->Run(*own->job, *own->model, waited));
    };
    task.refuse = [call = admitted.get()](absl::Status why) {
      const std::unique_ptr<Admitted> own(call);
      own->engine->Reject(why);
      own->done(std::move(why));
    };
    status = queue->Submit(std::move(task));
    if (status.ok()) {
      admitted.release();
      return;
    }
    done = std::move(admitted->done);
  }
  Reject(status);
  done(std::move(status));
}

// Claims the plan, and gives it back when the call did not run.
void Engine::Impl::EnqueuePlanned(const ApplyJob& apply, Done done) {
  absl::StatusOr<CompressJob> job = ClaimJob(apply, models, &plans);
  if (!job.ok()) return done(job.status());
  Enqueue(std::make_shared<const CompressJob>(*std::move(job)),
          [this, id = apply.plan, done = std::move(done)](absl::StatusOr<CompressResult> answer) {
            plans.Settle(id, answer.ok() ? PlanBook::Ran::kYes : PlanBook::Ran::kNo);
            done(std::move(answer));
          });
}

// The answer of an equal call that came first. When that one's client left, this one still wants
// it.
void Engine::Impl::AnswerWaiter(const SharedJob& job, const Done& done,
                                const ReplayCache::Answer& answer) {
  if (!answer.ok()) {
    if (IsStop(answer.status())) return Admit(job, done);
    return done(answer.status());
  }
  if (events != nullptr) events->OnReplay(LabelOf(*job));
  CompressResult copy = *answer;
  copy.replayed = true;
  done(std::move(copy));
}

void Engine::Impl::Admit(SharedJob job, Done done) {
  if (!ReplayCache::Takes(*job)) return Enqueue(job, std::move(done));
  auto start = replays.Begin(*job, absl::Now(), [this, job, done](const auto& answer) {
    AnswerWaiter(job, done, answer);
  });
  if (!start.ok()) {
    Reject(start.status());
    return done(start.status());
  }
  switch (start->begun) {
    case ReplayCache::Begun::kAttached:
      return;
    case ReplayCache::Begun::kAnswered:
      if (events != nullptr) events->OnReplay(LabelOf(*job));
      return done(*start->stored);
    case ReplayCache::Begun::kRun:
      break;
  }
  Enqueue(job, [this, job, done = std::move(done)](absl::StatusOr<CompressResult> answer) {
    const auto waiters = replays.Finish(*job, absl::Now(), answer);
    for (const ReplayCache::Waiter& waiter : waiters) waiter(answer);
    done(std::move(answer));
  });
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Engine::~Engine() {
  impl_->shutdown.store(true);
  impl_->queue.reset();
  impl_->attachments.OnClose(nullptr);
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(EngineOptions options) {
  KVERN_CHECK(options.backend != nullptr);
  if (const char* failpoints = std::getenv("KVERN_FAILPOINTS")) {
    KVERN_RETURN_IF_ERROR(SetFailpoints(failpoints));
  }
  const StorePlace store_place = options.store_place;
  auto impl = std::make_unique<Impl>(std::move(options));
  KVERN_ASSIGN_OR_RETURN(std::unique_ptr<memory::StoreMemory> memory,
                         MakeStoreMemory(store_place, impl->limits, impl->backend));
  impl->store = memory::Store::Create(std::move(memory), impl->limits.sequences);
  impl->attachments.OnClose([state = impl.get()](int64_t connection) {
    const int64_t expired = state->pools.ExpireConnection(connection);
    for (int64_t i = 0; state->events != nullptr && i < expired; ++i) {
      state->events->OnPoolEvent(PoolEvent::kPeerDied);
    }
    state->plans.Sweep(absl::Now());
  });
  impl->pools.OnLeaseEnd([state = impl.get()] {
    state->plans.Sweep(absl::Now());
    if (state->events != nullptr) state->events->OnPoolEvent(PoolEvent::kPeerDied);
  });
  impl->queue = std::make_unique<WorkQueue>(impl->limits);
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

void Engine::Impl::AdmitUnlessDraining(SharedJob job, Done done) {
  if (queue->Draining()) {
    const absl::Status status = WorkQueue::DrainingError();
    Reject(status);
    return done(status);
  }
  if (absl::Status lost = DeviceStatus(); !lost.ok()) return done(std::move(lost));
  Admit(std::move(job), std::move(done));
}

void Engine::Compress(CompressJob job, Done done) {
  impl_->AdmitUnlessDraining(
      std::allocate_shared<CompressJob>(RecyclingAllocator<CompressJob>(), std::move(job)),
      std::move(done));
}

void Engine::Plan(CompressJob job, absl::Duration patience,
                  std::function<void(absl::StatusOr<Planned>)> done) {
  job.validate_only = job.keeps_plans = true;
  const auto shared = std::make_shared<const CompressJob>(std::move(job));
  impl_->AdmitUnlessDraining(
      shared, [state = impl_.get(), shared, patience, done = std::move(done)](auto answer) {
        if (!answer.ok()) return done(answer.status());
        done(KeepPlan({shared, patience, *std::move(answer)}, state->models, &state->plans));
      });
}

void Engine::Apply(ApplyJob job, Done done) {
  impl_->AdmitUnlessDraining(ShellOf(std::move(job)), std::move(done));
}

absl::StatusOr<CompressResult> Engine::CompressAndWait(CompressJob job) {
  // Shared: the worker may still be inside set_value when the answer is already here.
  const auto result = std::make_shared<std::promise<absl::StatusOr<CompressResult>>>();
  Compress(std::move(job), [result](absl::StatusOr<CompressResult> answer) {
    result->set_value(std::move(answer));
  });
  return result->get_future().get();
}

int64_t Engine::Release(const std::vector<std::string>& sequence_ids) {
  impl_->replays.Forget({sequence_ids.begin(), sequence_ids.end()});
  impl_->plans.Release({sequence_ids.begin(), sequence_ids.end()});
  int64_t released = 0;
  for (const std::string& id : sequence_ids) {
    const bool remembered = impl_->remembered.Forget(id);
    const bool stored = impl_->store->Release(id);
    released += remembered || stored ? 1 : 0;
  }
  return released;
}

absl::Status Engine::DecodeStored(const memory::StoredSequence& sequence, absl::Time deadline,
                                  std::vector<std::byte>* k, std::vector<std::byte>* v) {
  KVERN_RETURN_IF_ERROR(impl_->DeviceStatus());
  KVERN_ASSIGN_OR_RETURN(const auto model, impl_->models.Find(sequence.Info().model));
  const int64_t dense_bytes = DenseBytes(model->spec, sequence.Info());
  if (dense_bytes > impl_->limits.queued_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("decode: got ", dense_bytes, " bytes of k and v, want at most ",
                     impl_->limits.queued_bytes, " (--queued-bytes), or the packed form"));
  }
  DenseKv dense;
  KVERN_RETURN_IF_ERROR(impl_->RunOnWorker(dense_bytes, deadline, [&] {
    return DecodePacked(*impl_->backend, model->spec, sequence, &dense);
  }));
  *k = std::move(dense.k);
  *v = std::move(dense.v);
  return absl::OkStatus();
}

absl::Status Engine::CopyStored(const memory::StoredSequence& from,
                                const memory::StoredSequence& to, absl::Time deadline) {
  KVERN_RETURN_IF_ERROR(impl_->DeviceStatus());
  return impl_->RunOnWorker(/*bytes=*/0, deadline,
                            [&] { return CopyTokens(*impl_->backend, from, to); });
}

bool Engine::Drain(absl::Duration patience) { return impl_->queue->Drain(patience); }

ModelRegistry& Engine::Models() { return impl_->models; }
memory::PoolTable& Engine::Pools() { return impl_->pools; }
memory::AttachmentTable& Engine::Attachments() { return impl_->attachments; }
memory::Store& Engine::Store() { return *impl_->store; }
EngineEvents* Engine::Events() const { return impl_->events; }
const Limits& Engine::GetLimits() const { return impl_->limits; }
absl::string_view Engine::BackendName() const { return impl_->backend->Name(); }
absl::string_view Engine::InstructionSet() const { return impl_->backend->InstructionSet(); }
std::optional<DeviceFacts> Engine::Device() const { return impl_->backend->Device(); }

absl::Status Engine::Health() const { return impl_->backend->Health(); }
absl::Status Engine::StoreHealth() const {
  return impl_->store->OnDevice() ? impl_->DeviceStatus() : absl::OkStatus();
}

EngineGauges Engine::Gauges() const {
  impl_->TellEvictions();
  EngineGauges gauges;
  const WorkQueue::Levels levels = impl_->queue->Now();
  gauges.queue_depth = levels.depth;
  gauges.queue_oldest_seconds = levels.oldest_seconds;
  gauges.queued_bytes = levels.bytes;
  for (const auto& pool : impl_->pools.List()) {
    const auto label = static_cast<size_t>(pool->spec.engine);
    auto& pools = pool->OnDevice() ? gauges.device_pools[label] : gauges.host_pools[label];
    ++pools.count;
    pools.mapped_bytes += pool->mapped_bytes;
  }
  gauges.store_sequences = static_cast<int64_t>(impl_->store->List().size());
  gauges.store_used_bytes = impl_->store->UsedBytes();
  gauges.store_capacity_bytes = impl_->store->CapacityBytes();
  gauges.store_on_device = impl_->store->OnDevice();
  gauges.attachments = impl_->attachments.Count();
  gauges.remembered_sequences = impl_->remembered.Count();
  gauges.replay_evictions = impl_->replays.Evictions();
  gauges.observed_bytes = impl_->models.ObservedBytes();
  gauges.plans = impl_->plans.Now(absl::Now());
  return gauges;
}

}  // namespace kvern::engine
