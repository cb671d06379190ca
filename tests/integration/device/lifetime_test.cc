// Device memory is held as long as its owner lives, by its connection or its lease, and no longer.
//
// This binary is also the client that gets killed: gRPC and CUDA do not survive a fork, so the test
// runs itself anew as `BINARY --client ADDRESS UUID`.
#include <sys/prctl.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdio>
#include <thread>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/integration/device/device_memory.h"

namespace kvern::device {
namespace {

constexpr int64_t kTokens = 300;
constexpr int64_t kBudget = 150;

const faults::PoolLayout& Layout() {
  static const auto* const layout = new faults::PoolLayout(
      faults::HeadMajorWithPadding({.head_dim = 64, .block_tokens = 16, .num_blocks = 64}));
  return *layout;
}

v1::CompressCacheRequest RequestOf(const std::string& pool, const std::string& model,
                                   const std::string& sequence) {
  faults::CallCase call;
  call.sequence = sequence;
  call.blocks = faults::ScatteredBlocks(0, Layout().BlocksFor(kTokens), 1, /*seed=*/4);
  call.tokens = kTokens;
  call.budget = kBudget;
  call.destination = faults::ScatteredBlocks(30, Layout().BlocksFor(kBudget), 2, /*seed=*/5);
  return faults::RequestOf({pool, model}, call);
}

absl::Status Copy(const client::Client& client, const std::string& pool, const std::string& model,
                  const std::string& sequence) {
  KVERN_ASSIGN_OR_RETURN(const v1::SequenceResult result,
                         faults::CompressOne(client, RequestOf(pool, model, sequence)));
  return client::SequenceStatus(result);
}

faults::Image Filled() {
  faults::Image image = faults::CanaryImage(Layout());
  faults::WriteSequence(Layout(),
                        faults::ScatteredBlocks(0, Layout().BlocksFor(kTokens), 1, /*seed=*/4),
                        kTokens, /*seed=*/7, &image);
  return image;
}

// Registers a pool of each kind, names them on stdout, then copies for ever and writes a dot after
// every call over either.
int RunClient(const std::string& address, const std::string& device_uuid) {
  const auto client = client::Client::Connect(address);
  if (!client.ok()) return 1;
  const auto model = client->RegisterModel(faults::TestModel(Layout().head_dim));
  if (!model.ok()) return 1;
  std::vector<std::unique_ptr<DeviceMemory>> memories;
  std::vector<client::DevicePool> pools;
  for (const Kind kind : kKinds) {
    memories.push_back(std::make_unique<DeviceMemory>(kind, Layout().RegionBytes()));
    memories.back()->Restore(Filled());
    const client::DeviceRegion region = memories.back()->Region(device_uuid);
    auto pool =
        client::DevicePool::Register(*client, DescriptionOf(Layout(), model->name()), {&region, 1});
    if (!pool.ok()) return 2;
    std::printf("%s\n", pool->Name().c_str());
    pools.push_back(*std::move(pool));
  }
  std::fflush(stdout);
  std::vector<std::thread> threads;
  for (const client::DevicePool& pool : pools) {
    threads.emplace_back([&] {
      for (int i = 0;; ++i) {
        const std::string sequence = pool.Name() + std::to_string(i);
        const absl::Status status = Copy(*client, pool.Name(), model->name(), sequence);
        if (!status.ok() || write(STDOUT_FILENO, ".", 1) != 1) _exit(3);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

class ClientProcess {
 public:
  explicit ClientProcess(const Serving& serving) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return;
    const std::string address = serving.process->Address();
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(ends[1], STDOUT_FILENO);
      execl("/proc/self/exe", "client", "--client", address.c_str(), serving.device_uuid.c_str(),
            nullptr);
      _exit(127);
    }
    close(ends[1]);
    output_ = fdopen(ends[0], "r");
  }
  ~ClientProcess() {
    Kill();
    if (output_ != nullptr) std::fclose(output_);
  }
  ClientProcess(const ClientProcess&) = delete;
  ClientProcess& operator=(const ClientProcess&) = delete;

  std::string ReadLine() {
    char line[256] = {};
    if (std::fgets(line, sizeof(line), output_) == nullptr) return "";
    line[std::strcspn(line, "\n")] = 0;
    return line;
  }
  // False when the process ended before it finished so many more calls.
  bool AwaitCalls(int count) {
    for (int i = 0; i < count; ++i) {
      if (std::fgetc(output_) == EOF) return false;
    }
    return true;
  }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    int status = 0;
    waitpid(pid_, &status, 0);
    EXPECT_TRUE(WIFSIGNALED(status)) << "the client ended by itself: " << WEXITSTATUS(status);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  std::FILE* output_ = nullptr;
};

class LifetimeTest : public testing::Test {
 protected:
  void StartWith(const std::string& lease_seconds) {
    std::vector<std::string> flags = OnDevice();
    flags.insert(flags.end(), {"--pool-lease", lease_seconds});
    auto serving = Serving::Start(flags, Layout().head_dim);
    ASSERT_TRUE(serving) << "kvernd did not start";
    serving_ = *std::move(serving);
    baseline_ = serving_.process->MappedMemfds();
  }
  // Mappings of device memory of other processes: here they are memfds.
  int Mapped() const { return serving_.process->MappedMemfds() - baseline_; }
  int64_t Pools() const { return serving_.Metric("kvern_pools"); }
  int64_t Died() const { return serving_.Metric("kvern_pool_events_total", "event=\"peer_died\""); }
  static bool Eventually(const std::function<bool()>& done) {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    while (!done() && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(10));
    return done();
  }
  absl::StatusOr<v1::RegisterPoolResponse> RegisterHandle(const DeviceMemory& memory) {
    v1::Pool pool = DescriptionOf(Layout(), serving_.model);
    const client::DeviceRegion region = memory.Region(serving_.device_uuid);
    v1::CudaIpc* ipc = pool.add_regions()->mutable_cuda_ipc();
    ipc->set_handle(region.ipc_handle);
    ipc->set_device_uuid(region.device_uuid);
    ipc->set_offset_bytes(region.offset_bytes);
    ipc->set_size_bytes(region.size_bytes);
    return serving_.client->RegisterPool(pool);
  }

  Serving serving_;
  int baseline_ = 0;
};

TEST_F(LifetimeTest, OfAKilledClientEndsByConnectionAndByLease) {
  ASSERT_NO_FATAL_FAILURE(StartWith("1"));
  for (const int calls : {0, 7}) {
    SCOPED_TRACE(calls);
    const int64_t died = Died();
    std::vector<std::string> names;
    {
      ClientProcess client(serving_);
      for ([[maybe_unused]] const Kind kind : kKinds) names.push_back(client.ReadLine());
      ASSERT_TRUE(client.AwaitCalls(calls));
      EXPECT_EQ(Pools(), 2);
      EXPECT_GE(Mapped(), 2);
      client.Kill();
    }
    EXPECT_TRUE(Eventually([&] { return Died() == died + 2; })) << Died();
    EXPECT_TRUE(Eventually([&] { return Mapped() == 0; })) << Mapped() << " mappings are left";
    EXPECT_EQ(Pools(), 0);
    EXPECT_EQ(serving_.Metric("kvern_pool_mapped_bytes"), 0);
    EXPECT_EQ(serving_.Metric("kvern_attachments"), 0);
    for (const std::string& name : names) {
      const absl::Status status = Copy(*serving_.client, name, serving_.model, "late");
      EXPECT_TRUE(absl::IsNotFound(status)) << status;
      EXPECT_EQ(ReasonOf(status), "POOL_EXPIRED");
    }
  }
  EXPECT_TRUE(serving_.client->Ping().ok());
}

TEST_F(LifetimeTest, EndsWithALeaseThatNobodyRenews) {
  ASSERT_NO_FATAL_FAILURE(StartWith("1"));
  DeviceMemory memory(Kind::kIpcHandle, Layout().RegionBytes());
  memory.Restore(Filled());
  const auto response = RegisterHandle(memory);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->lease_seconds(), 1);
  const std::string name = response->pool().name();
  EXPECT_TRUE(Copy(*serving_.client, name, serving_.model, "early").ok());
  EXPECT_TRUE(Eventually([&] { return Mapped() == 0; }));
  EXPECT_EQ(Died(), 1);
  EXPECT_EQ(ReasonOf(Copy(*serving_.client, name, serving_.model, "late")), "POOL_EXPIRED");
  const absl::Status renewed = serving_.client->KeepPoolAlive(name).status();
  EXPECT_TRUE(absl::IsNotFound(renewed)) << renewed;
  EXPECT_EQ(ReasonOf(renewed), "POOL_EXPIRED");
}

TEST_F(LifetimeTest, GoesOnWhileTheClientRenews) {
  ASSERT_NO_FATAL_FAILURE(StartWith("1"));
  std::vector<std::unique_ptr<DeviceMemory>> memories;
  std::vector<client::DevicePool> pools;
  for (const Kind kind : kKinds) {
    memories.push_back(std::make_unique<DeviceMemory>(kind, Layout().RegionBytes()));
    memories.back()->Restore(Filled());
    const client::DeviceRegion region = memories.back()->Region(serving_.device_uuid);
    auto pool = client::DevicePool::Register(*serving_.client,
                                             DescriptionOf(Layout(), serving_.model), {&region, 1});
    ASSERT_TRUE(pool.ok()) << pool.status();
    pools.push_back(*std::move(pool));
  }
  absl::SleepFor(absl::Milliseconds(2500));
  for (const client::DevicePool& pool : pools) {
    EXPECT_TRUE(pool.Renewed().ok()) << pool.Renewed();
    const absl::Status status = Copy(*serving_.client, pool.Name(), serving_.model, pool.Name());
    EXPECT_TRUE(status.ok()) << status;
  }
  const auto by_connection = serving_.client->KeepPoolAlive(pools[1].Name());
  EXPECT_TRUE(by_connection.ok() && *by_connection == 0) << by_connection.status();
  EXPECT_EQ(Died(), 0);
  pools.clear();
  EXPECT_EQ(Pools(), 0);
  EXPECT_TRUE(Eventually([&] { return Mapped() == 0; }));
}

TEST_F(LifetimeTest, OfTwoPoolsOverOneAllocationIsTheLongerOne) {
  ASSERT_NO_FATAL_FAILURE(StartWith("60"));
  DeviceMemory memory(Kind::kIpcHandle, Layout().RegionBytes());
  memory.Restore(Filled());
  const auto first = RegisterHandle(memory);
  const auto second = RegisterHandle(memory);
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  ASSERT_TRUE(serving_.client->UnregisterPool(first->pool().name()).ok());
  EXPECT_TRUE(Copy(*serving_.client, second->pool().name(), serving_.model, "a").ok());
  ASSERT_TRUE(serving_.client->UnregisterPool(second->pool().name()).ok());
  EXPECT_TRUE(Eventually([&] { return Mapped() == 0; }));
}

}  // namespace
}  // namespace kvern::device

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "--client") {
    return kvern::device::RunClient(argv[2], argv[3]);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
