// Files go through the broker, whose connection the pool lives by; handles go with the description,
// and then the pool lives by its lease.
#include "client/cpp/device_pool.h"

#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/cpp/broker_connection.h"
#include "client/cpp/shared_pool.h"
#include "kernels/base/status_macros.h"

namespace kvern::client {
namespace {

// Renews until it dies or the pool is gone.
class LeaseKeeper {
 public:
  LeaseKeeper(Client client, std::string pool, int64_t lease_seconds)
      : client_(std::move(client)),
        pool_(std::move(pool)),
        // Two renewals may fail before the lease ends.
        period_(absl::Seconds(lease_seconds) / 3),
        thread_([this] { Run(); }) {}
  ~LeaseKeeper() {
    {
      const absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }
  LeaseKeeper(const LeaseKeeper&) = delete;
  LeaseKeeper& operator=(const LeaseKeeper&) = delete;

  absl::Status Last() const {
    const absl::MutexLock lock(&mutex_);
    return last_;
  }

 private:
  void Run() {
    while (true) {
      {
        const absl::MutexLock lock(&mutex_);
        if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), period_)) return;
      }
      absl::Status status = client_.KeepPoolAlive(pool_).status();
      const absl::MutexLock lock(&mutex_);
      last_ = std::move(status);
      if (absl::IsNotFound(last_)) return;
    }
  }

  const Client client_;
  const std::string pool_;
  const absl::Duration period_;
  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status last_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;  // last: uses all of the above
};

void AddHandle(const DeviceRegion& region, v1::Pool* pool) {
  v1::CudaIpc* ipc = pool->add_regions()->mutable_cuda_ipc();
  ipc->set_handle(region.ipc_handle);
  ipc->set_device_uuid(region.device_uuid);
  ipc->set_offset_bytes(region.offset_bytes);
  ipc->set_size_bytes(region.size_bytes);
}

}  // namespace

struct DevicePool::State {
  explicit State(const Client& connected) : client(connected) {}

  const Client client;
  std::optional<BrokerConnection> broker;
  std::string name;
  std::optional<LeaseKeeper> keeper;

  ~State() {
    keeper.reset();
    if (!name.empty()) client.UnregisterPool(name).IgnoreError();
  }
  absl::Status AddFile(const DeviceRegion& region, v1::Pool* pool) {
    if (!broker) {
      KVERN_ASSIGN_OR_RETURN(BrokerConnection connection, ConnectBroker(client));
      broker.emplace(std::move(connection));
    }
    KVERN_ASSIGN_OR_RETURN(const std::string id,
                           broker->AttachDevice({region.file, region.device_uuid,
                                                 region.offset_bytes, region.size_bytes}));
    pool->add_regions()->set_attachment_id(id);
    return absl::OkStatus();
  }
};

DevicePool::DevicePool(std::unique_ptr<State> state) : state_(std::move(state)) {}
DevicePool::DevicePool(DevicePool&&) noexcept = default;
DevicePool& DevicePool::operator=(DevicePool&&) noexcept = default;
DevicePool::~DevicePool() = default;

absl::StatusOr<DevicePool> DevicePool::Register(const Client& client, const v1::Pool& pool,
                                                std::span<const DeviceRegion> regions) {
  auto state = std::make_unique<State>(client);
  v1::Pool described = pool;
  described.clear_regions();
  for (size_t i = 0; i < regions.size(); ++i) {
    const DeviceRegion& region = regions[i];
    if (region.ipc_handle.empty() == (region.file < 0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("regions[", i, "]: want an ipc_handle or a file, one of them"));
    }
    if (region.file < 0) {
      AddHandle(region, &described);
    } else {
      KVERN_RETURN_IF_ERROR(state->AddFile(region, &described));
    }
  }
  KVERN_ASSIGN_OR_RETURN(const v1::RegisterPoolResponse response, client.RegisterPool(described));
  state->name = response.pool().name();
  if (response.lease_seconds() > 0) {
    state->keeper.emplace(client, state->name, response.lease_seconds());
  }
  return DevicePool(std::move(state));
}

const std::string& DevicePool::Name() const { return state_->name; }

absl::Status DevicePool::Renewed() const {
  return state_->keeper ? state_->keeper->Last() : absl::OkStatus();
}

}  // namespace kvern::client
