// A client that dies, or misbehaves at the broker, leaves nothing behind and disturbs nobody.
//
// This binary is also the client that gets killed: gRPC does not survive a fork, so the test runs
// itself anew as `BINARY --client ADDRESS BROKER_PATH`.
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/integration/faults/server_pool.h"

namespace kvern::faults {
namespace {

constexpr int kPools = 3;  // of one client process
constexpr int64_t kTokens = 300;
constexpr int64_t kBudget = 150;

// A frontend with one pool, in which one sequence can be copied again and again.
class Frontend {
 public:
  Frontend(const std::string& address, std::string broker_path, std::string sequence)
      : address_(address), broker_path_(std::move(broker_path)) {
    call_.sequence = std::move(sequence);
    call_.blocks = ScatteredBlocks(0, layout_.BlocksFor(kTokens), 1, /*seed=*/4);
    call_.tokens = kTokens;
    call_.budget = kBudget;
    call_.destination = ScatteredBlocks(30, layout_.BlocksFor(kBudget), 2, /*seed=*/5);
    before_ = CanaryImage(layout_);
    WriteSequence(layout_, call_.blocks, kTokens, /*seed=*/7, &before_);
    memory_.Restore(before_);
  }

  absl::Status Register() {
    KVERN_ASSIGN_OR_RETURN(client::Client client, client::Client::Connect(address_));
    client_.emplace(std::move(client));
    KVERN_ASSIGN_OR_RETURN(ServerPool pool, RegisterPool(*client_, broker_path_, layout_, memory_));
    pool_.emplace(std::move(pool));
    return absl::OkStatus();
  }

  absl::StatusOr<v1::SequenceResult> Copy(uint64_t epoch) const {
    v1::CompressCacheRequest request = RequestOf(*pool_, call_);
    request.mutable_sequences(0)->set_epoch(epoch);
    return CompressOne(*client_, request);
  }
  // Copies, and looks at every byte of the pool.
  absl::Status CopyAndCompare(uint64_t epoch) {
    KVERN_ASSIGN_OR_RETURN(const v1::SequenceResult result, Copy(epoch));
    KVERN_RETURN_IF_ERROR(client::SequenceStatus(result));
    const std::string difference = Difference(
        memory_.Now(), Moved(layout_, before_, call_.blocks, TableOf(result), KeptOf(result)));
    return difference.empty() ? absl::OkStatus() : absl::DataLossError(difference);
  }

  const PoolNames& Names() const { return *pool_; }
  const CallCase& Call() const { return call_; }

 private:
  const PoolLayout layout_ =
      HeadMajorWithPadding({.head_dim = 64, .block_tokens = 16, .num_blocks = 64});
  SharedMemory memory_{layout_.RegionBytes()};
  std::string address_, broker_path_;
  CallCase call_;
  Image before_;
  std::optional<client::Client> client_;
  std::optional<ServerPool> pool_;
};

// The process to kill: names its pools on stdout, then writes a dot after every call. The exit code
// says that something failed before the kill.
int RunClient(const std::string& address, const std::string& broker_path) {
  std::vector<std::unique_ptr<Frontend>> frontends;
  std::string names;
  for (int i = 0; i < kPools; ++i) {
    frontends.push_back(std::make_unique<Frontend>(
        address, broker_path, std::to_string(getpid()) + "-" + std::to_string(i)));
    if (const absl::Status status = frontends.back()->Register(); !status.ok()) return 1;
    names += frontends.back()->Names().name + "\n";
  }
  if (write(STDOUT_FILENO, names.data(), names.size()) < 0) return 1;
  std::vector<std::thread> threads;
  for (const auto& frontend : frontends) {
    threads.emplace_back([&frontend] {
      for (uint64_t epoch = 0;; ++epoch) {
        const absl::Status status = frontend->CopyAndCompare(epoch);
        if (!status.ok() || write(STDOUT_FILENO, ".", 1) != 1) _exit(2);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

class ClientProcess {
 public:
  explicit ClientProcess(const support::ServerProcess& server) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return;
    const std::string address = server.Address(), broker_path = BrokerPath(server);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(ends[1], STDOUT_FILENO);
      execl("/proc/self/exe", "client", "--client", address.c_str(), broker_path.c_str(), nullptr);
      _exit(127);
    }
    close(ends[1]);
    output_ = ends[0];
  }
  ~ClientProcess() {
    if (pid_ > 0) Kill();
    close(output_);
  }
  ClientProcess(const ClientProcess&) = delete;
  ClientProcess& operator=(const ClientProcess&) = delete;

  // The next line; empty when the process ended.
  std::string ReadLine() {
    std::string line;
    for (char byte = 0; read(output_, &byte, 1) == 1 && byte != '\n';) line += byte;
    return line;
  }
  // False when the process ended before it finished so many more calls.
  bool AwaitCalls(int count) {
    char byte = 0;
    for (int i = 0; i < count; ++i) {
      if (read(output_, &byte, 1) != 1) return false;
    }
    return true;
  }
  // The wait status.
  int Kill() {
    int status = 0;
    kill(pid_, SIGKILL);
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_ = -1;
  int output_ = -1;
};

// What the server holds for its clients.
struct Held {
  int64_t pools = 0, pool_bytes = 0, attachments = 0;
  int memfds = 0, fds = 0;

  // A socket of an earlier scrape may linger in either count of fds.
  bool Within(const Held& baseline) const {
    return pools == baseline.pools && pool_bytes == baseline.pool_bytes &&
           attachments == baseline.attachments && memfds == baseline.memfds && fds <= baseline.fds;
  }
};
std::ostream& operator<<(std::ostream& out, const Held& held) {
  return out << held.pools << " pools of " << held.pool_bytes << " bytes, " << held.attachments
             << " attachments, " << held.memfds << " memfds, " << held.fds << " fds";
}

class ClientDeathTest : public testing::Test {
 protected:
  void SetUp() override {
    server_ = support::ServerProcess::Start();
    ASSERT_NE(server_, nullptr);
  }

  Held HeldNow() const {
    const std::string page = server_->Scrape();
    return {MetricSum(page, "kvern_pools"), MetricSum(page, "kvern_pool_mapped_bytes"),
            MetricSum(page, "kvern_attachments"), server_->MappedMemfds(), server_->OpenFds()};
  }
  // Scrapes until the server holds what it did at `baseline`. A server that leaks never does: the
  // deadline only ends the test.
  Held AwaitHeld(const Held& baseline) const {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    Held now = HeldNow();
    while (!now.Within(baseline) && absl::Now() < deadline) now = HeldNow();
    return now;
  }
  int64_t PeersDied() const {
    return MetricSum(server_->Scrape(), "kvern_pool_events_total", "event=\"peer_died\"");
  }

  // A client dies after `calls` calls; the names of its pools.
  std::vector<std::string> KillOneAfter(int calls) {
    ClientProcess client(*server_);
    std::vector<std::string> names;
    for (int i = 0; i < kPools; ++i) names.push_back(client.ReadLine());
    EXPECT_TRUE(client.AwaitCalls(calls)) << "the client ended by itself";
    EXPECT_EQ(client.Kill(), SIGKILL);
    return names;
  }

  std::unique_ptr<support::ServerProcess> server_;
};

TEST_F(ClientDeathTest, GivesBackAllThatADeadClientHeld) {
  const Held baseline = HeldNow();
  std::mt19937 random(3);
  for (int64_t round = 1; round <= 8 && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    const int calls = std::uniform_int_distribution<int>(0, 40)(random);
    KillOneAfter(calls);
    const Held after = AwaitHeld(baseline);
    EXPECT_TRUE(after.Within(baseline)) << after << "; before: " << baseline;
    EXPECT_EQ(PeersDied(), kPools * round);
  }
}

TEST_F(ClientDeathTest, RefusesTheDeadClientsPoolsAndServesOthers) {
  Frontend bystander(server_->Address(), BrokerPath(*server_), "bystander");
  ASSERT_TRUE(bystander.Register().ok());
  ASSERT_TRUE(bystander.CopyAndCompare(0).ok());
  const Held baseline = HeldNow();
  const std::vector<std::string> dead_pools = KillOneAfter(/*calls=*/5);
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (PeersDied() < kPools && absl::Now() < deadline) {
  }
  ASSERT_EQ(PeersDied(), kPools);
  const auto client = client::Client::Connect(server_->Address());
  ASSERT_TRUE(client.ok()) << client.status();
  for (const std::string& name : dead_pools) {
    CallCase call = bystander.Call();
    call.sequence = "late";
    const auto result =
        CompressOne(*client, RequestOf(PoolNames{name, bystander.Names().model}, call));
    const absl::Status status = result.ok() ? client::SequenceStatus(*result) : result.status();
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_EQ(ReasonOf(status), "POOL_EXPIRED");
  }
  EXPECT_EQ(MetricSum(server_->Scrape(), "kvern_pools"), baseline.pools);
  EXPECT_TRUE(bystander.CopyAndCompare(1).ok());
  Frontend newcomer(server_->Address(), BrokerPath(*server_), "newcomer");
  ASSERT_TRUE(newcomer.Register().ok());
  EXPECT_TRUE(newcomer.CopyAndCompare(0).ok());
}

// One end of a broker connection that says what it likes.
class RawPeer {
 public:
  explicit RawPeer(const std::string& path)
      : socket_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    connected_ =
        connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~RawPeer() { close(socket_); }
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;

  bool Connected() const { return connected_; }
  // False when the broker ended the connection. Never reads an answer.
  bool Send(const std::string& payload) {
    return send(socket_, payload.data(), payload.size(), MSG_NOSIGNAL) >= 0;
  }

 private:
  int socket_;
  bool connected_ = false;
};

TEST_F(ClientDeathTest, ServesAClientBesideAFloodOfGarbageAtTheBroker) {
  const Held baseline = HeldNow();
  std::atomic<bool> stop{false};
  std::atomic<int64_t> garbage{0};
  std::thread flood([&] {
    const std::string payloads[] = {"KVA1", "KVA2", "x", std::string(60000, 'K'),
                                    std::string(4, 0)};
    while (!stop.load()) {
      std::vector<std::unique_ptr<RawPeer>> peers;
      for (const std::string& payload : payloads) {
        peers.push_back(std::make_unique<RawPeer>(BrokerPath(*server_)));
        for (int i = 0; i < 20 && peers.back()->Send(payload); ++i) garbage.fetch_add(1);
      }
    }
  });
  for (int round = 0; round < 10; ++round) {
    Frontend frontend(server_->Address(), BrokerPath(*server_), "s" + std::to_string(round));
    const absl::Status registered = frontend.Register();
    EXPECT_TRUE(registered.ok()) << registered;
    if (!registered.ok()) break;
    const absl::Status copied = frontend.CopyAndCompare(0);
    EXPECT_TRUE(copied.ok()) << copied;
  }
  stop.store(true);
  flood.join();
  EXPECT_GT(garbage.load(), 0);
  const Held after = AwaitHeld(baseline);
  EXPECT_TRUE(after.Within(baseline)) << after << "; before: " << baseline;
}

TEST_F(ClientDeathTest, RefusesDescriptorsThatCouldPullMemoryAway) {
  auto broker = client::BrokerConnection::Connect(BrokerPath(*server_), absl::Seconds(30));
  ASSERT_TRUE(broker.ok()) << broker.status();
  const int unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(unsealed, 4096), 0);
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const int device = open("/dev/zero", O_RDWR | O_CLOEXEC);
  const Held before = HeldNow();
  for (const int fd : {unsealed, ends[0], device}) {
    EXPECT_TRUE(absl::IsInvalidArgument(broker->Attach(fd).status()));
  }
  const Held after = AwaitHeld(before);
  EXPECT_TRUE(after.Within(before)) << after << "; before: " << before;
  ASSERT_EQ(fcntl(unsealed, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_TRUE(broker->Attach(unsealed).ok());
  for (const int fd : {unsealed, ends[0], ends[1], device}) close(fd);
}

}  // namespace
}  // namespace kvern::faults

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "--client") {
    return kvern::faults::RunClient(argv[2], argv[3]);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
