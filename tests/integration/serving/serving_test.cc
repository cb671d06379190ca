// A server from its first line to its last: what it offers, to whom, and how it leaves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <csignal>
#include <filesystem>

#include "kernels/base/error_reason.h"
#include "tests/integration/hostile/raw_call.h"
#include "tests/integration/serving/running_call.h"

namespace kvern::serving {
namespace {

using hostile::InlineRequest;
using hostile::PagedRequest;
using hostile::RawCall;
using hostile::TestPool;
using support::RunCommand;
using support::ServerProcess;
using testing::HasSubstr;
using testing::Not;

constexpr char kHealth[] = "/grpc.health.v1.Health/Check";
constexpr char kServing[] = "\x08\x01";     // HealthCheckResponse{status: SERVING}
constexpr char kNotServing[] = "\x08\x02";  // NOT_SERVING

client::Client Connected(const ServerProcess& server) {
  auto client = client::Client::Connect(server.Address());
  if (!client.ok()) ADD_FAILURE() << client.status();
  return *client;
}

std::shared_ptr<grpc::Channel> AdminChannel(const ServerProcess& server) {
  return client::Client::Connect("unix:" + server.SocketPath("kvern.admin.sock"))->Channel();
}

TEST(Serving, ReportsHealthOfTheServerAndOfItsService) {
  const auto server = ServerProcess::Start();
  ASSERT_NE(server, nullptr);
  const client::Client client = Connected(*server);
  EXPECT_TRUE(client.Ping().ok());
  EXPECT_EQ(RawCall(client.Channel(), kHealth, "").bytes, kServing);
  const std::string name = "kvern.v1.CompressionService";
  const std::string of_service = "\x0A" + std::string(1, static_cast<char>(name.size())) + name;
  EXPECT_EQ(RawCall(client.Channel(), kHealth, of_service).bytes, kServing);
  EXPECT_EQ(RawCall(client.Channel(), kHealth, "\x0A\x01x").status.error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST(Serving, ReflectsItsFiveServices) {
  const auto server = ServerProcess::Start();
  ASSERT_NE(server, nullptr);
  const auto answer =
      RawCall(Connected(*server).Channel(),
              "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "\x3A\x01*");
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  for (const char* service : {"Compression", "Pool", "Store", "Model", "Server"}) {
    EXPECT_THAT(answer.bytes, HasSubstr("kvern.v1." + std::string(service) + "Service"));
  }
  EXPECT_THAT(answer.bytes, Not(HasSubstr("hannelz")));
}

TEST(Serving, ShowsChannelzOnTheAdminSocketOnly) {
  const auto server = ServerProcess::Start();
  ASSERT_NE(server, nullptr);
  const std::string channelz = "/grpc.channelz.v1.Channelz/GetServers";
  const auto answer = RawCall(AdminChannel(*server), channelz, "");
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_FALSE(answer.bytes.empty());
  EXPECT_EQ(RawCall(Connected(*server).Channel(), channelz, "").status.error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(RawCall(AdminChannel(*server), "/kvern.v1.ServerService/GetServerInfo", "")
                .status.error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST(Serving, SocketsAreForOwnerAndGroup) {
  const std::string directory = testing::TempDir() + "kvern-modes-" + std::to_string(getpid());
  const auto server = ServerProcess::Start({"--listen", "unix:" + directory + "/other.sock"});
  ASSERT_NE(server, nullptr);
  struct stat info {};
  for (const std::string& path :
       {server->SocketPath("kvern.sock"), server->SocketPath("kvern.broker.sock"),
        server->SocketPath("kvern.admin.sock"), directory + "/other.sock"}) {
    ASSERT_EQ(stat(path.c_str(), &info), 0) << path;
    EXPECT_TRUE(S_ISSOCK(info.st_mode)) << path;
    EXPECT_EQ(info.st_mode & 0777, 0660u) << path;
  }
  ASSERT_EQ(stat(directory.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0750u);
  server->Signal(SIGTERM);
  EXPECT_EQ(server->Wait(), 0);
  // Nothing of it stays.
  EXPECT_FALSE(std::filesystem::exists(server->SocketPath("kvern.sock")));
  EXPECT_FALSE(std::filesystem::exists(server->SocketPath("kvern.broker.sock")));
  EXPECT_FALSE(std::filesystem::exists(server->SocketPath("kvern.admin.sock")));
  std::filesystem::remove_all(directory);
}

TEST(Serving, SecondServerOnALiveSocketRefusesToStart) {
  const auto server = ServerProcess::Start();
  ASSERT_NE(server, nullptr);
  const auto second = RunCommand(
      {support::BinaryPath("kvernd"), "--listen", server->Address(), "--metrics-listen="});
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_THAT(second.err, HasSubstr("another server listens on"));
  EXPECT_THAT(second.err, HasSubstr("--listen"));
  // The first one still answers by its paths: a new connection, and a pool through its broker.
  const client::Client client = Connected(*server);
  EXPECT_TRUE(client.RegisterModel(hostile::TestModel()).ok());
  EXPECT_TRUE(TestPool::Register(client, *server, "first", /*blocks=*/4).ok());
}

TEST(Serving, SocketOfADeadServerIsTakenOver) {
  auto server = ServerProcess::Start();
  ASSERT_NE(server, nullptr);
  server->Signal(SIGKILL);
  EXPECT_EQ(server->Wait(), -SIGKILL);
  ASSERT_TRUE(std::filesystem::exists(server->SocketPath("kvern.sock")));
  const auto second = ServerProcess::Start({"--listen", server->Address()});
  ASSERT_NE(second, nullptr);
  EXPECT_TRUE(Connected(*server).Ping().ok());
}

TEST(Serving, ChecksItsConfigurationWithoutServing) {
  const std::string kvernd = support::BinaryPath("kvernd");
  const std::string socket = testing::TempDir() + "/unused.sock";
  const auto good = RunCommand({kvernd, "--check-config", "--listen", "unix:" + socket});
  EXPECT_EQ(good.exit_code, 0) << good.err;
  EXPECT_THAT(good.out, HasSubstr("configuration is good"));
  EXPECT_THAT(good.out, HasSubstr(socket));
  EXPECT_FALSE(std::filesystem::exists(socket));
  const std::vector<std::pair<std::vector<std::string>, std::string>> bad = {
      {{"--listen", "0.0.0.0:7070"}, "--insecure"},
      {{"--listen", "unix:relative.sock"}, "absolute path"},
      {{"--listen", "nowhere"}, "HOST:PORT"},
      {{"--store-bytes", "0"}, "--store-bytes"},
      {{"--layers", "513"}, "--layers"},
      {{"--log-format", "xml"}, "--log-format"},
      {{"--tls-cert", "/etc/hostname"}, "--tls-key"},
      {{"--no-such-flag"}, "--no-such-flag"}};
  for (const auto& [flags, says] : bad) {
    std::vector<std::string> command = {kvernd, "--check-config"};
    command.insert(command.end(), flags.begin(), flags.end());
    const auto output = RunCommand(command);
    EXPECT_EQ(output.exit_code, 2) << says;
    EXPECT_THAT(output.err, HasSubstr(says));
  }
}

class LongCalls : public testing::Test {
 protected:
  void StartWith(std::vector<std::string> flags) {
    flags.insert(flags.end(), {"--backend", "ref", "--threads", "1"});
    server_ = ServerProcess::Start(flags);
    ASSERT_NE(server_, nullptr);
    client_ = std::make_unique<client::Client>(Connected(*server_));
    ASSERT_TRUE(client_->RegisterModel(hostile::TestModel()).ok());
    auto pool = TestPool::Register(*client_, *server_, "long", /*blocks=*/800);
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }
  v1::CompressCacheRequest LongPaged() const {
    return LongRequest(PagedRequest(pool_->Name(), kLongTokens));
  }

  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<TestPool> pool_;
};

TEST_F(LongCalls, FinishWhileTheServerDrainsAndNewOnesAreRefused) {
  // Under a sanitizer on a busy machine the calls take about as long as the default limit.
  StartWith({"--drain-seconds", "300"});
  RunningCall running(*client_, LongPaged());
  ASSERT_TRUE(AwaitInFlight(*server_, 1));
  RunningCall queued(*client_, LongRequest(InlineRequest(kLongTokens / 4)));
  ASSERT_TRUE(AwaitInFlight(*server_, 2));
  server_->Signal(SIGTERM);
  EXPECT_TRUE(hostile::Eventually(
      [&] { return RawCall(client_->Channel(), kHealth, "").bytes == kNotServing; }));
  // Health turns a moment before admission does.
  absl::Status refused;
  EXPECT_TRUE(hostile::Eventually(
      [&] { return !(refused = client_->Compress(InlineRequest(8)).status()).ok(); }));
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  EXPECT_EQ(ReasonOf(refused), "DRAINING") << refused;
  EXPECT_TRUE(running.Join().ok()) << running.Response().DebugString();
  EXPECT_EQ(running.Response().results(0).outcome(), v1::OUTCOME_APPLIED);
  const absl::Status& last = queued.Join();
  EXPECT_TRUE(last.ok()) << last;
  EXPECT_EQ(server_->Wait(), 0);
  EXPECT_THAT(server_->Log(), HasSubstr("stopped"));
}

TEST_F(LongCalls, AreEndedWhenTheDrainLimitIsReached) {
  StartWith({"--drain-seconds", "1"});
  const std::string before = pool_->Bytes();
  // More than a second of work, in one queue.
  std::vector<std::unique_ptr<RunningCall>> calls;
  for (int i = 0; i < 8; ++i) {
    v1::CompressCacheRequest request = LongPaged();
    request.set_validate_only(true);
    request.mutable_sequences(0)->set_sequence_id(std::to_string(i));
    calls.push_back(std::make_unique<RunningCall>(*client_, request));
  }
  ASSERT_TRUE(AwaitInFlight(*server_, 8));
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0);
  EXPECT_THAT(server_->Log(), HasSubstr("the drain limit was reached"));
  int ended = 0;
  for (const auto& call : calls) ended += call->Join().ok() ? 0 : 1;
  EXPECT_GT(ended, 0);
  EXPECT_TRUE(pool_->Bytes() == before);
}

TEST_F(LongCalls, PastTheirDeadlineLeaveNothingChanged) {
  StartWith({});
  const std::string before = pool_->Bytes();
  RunningCall call(*client_, LongPaged(), std::chrono::milliseconds(100));
  const absl::Status& status = call.Join();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  ASSERT_TRUE(AwaitInFlight(*server_, 0));
  EXPECT_TRUE(pool_->Bytes() == before);
  EXPECT_THAT(server_->Scrape(), HasSubstr("kvern_remembered_sequences 0\n"));
  // The worker is free again.
  EXPECT_TRUE(client_->Compress(InlineRequest(8)).ok());
}

TEST_F(LongCalls, WithoutADeadlineGetTheDefaultOne) {
  StartWith({"--default-deadline-seconds", "1"});
  const std::string before = pool_->Bytes();
  // Together more than a second of work: the last one cannot make it.
  const auto stub = v1::CompressionService::NewStub(client_->Channel());
  std::vector<std::thread> callers;
  std::vector<absl::Status> statuses(8);
  for (size_t i = 0; i < statuses.size(); ++i) {
    callers.emplace_back([&, i] {
      v1::CompressCacheRequest request = LongPaged();
      request.set_validate_only(true);
      grpc::ClientContext context;
      v1::CompressCacheResponse response;
      statuses[i] = client::FromGrpc(stub->CompressCache(&context, request, &response));
    });
  }
  for (std::thread& caller : callers) caller.join();
  int late = 0;
  for (const absl::Status& status : statuses) {
    EXPECT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
    late += status.ok() ? 0 : 1;
  }
  EXPECT_GT(late, 0);
  EXPECT_TRUE(pool_->Bytes() == before);
}

TEST_F(LongCalls, CancelledByTheirClientLeaveNothingChanged) {
  StartWith({});
  const std::string before = pool_->Bytes();
  RunningCall call(*client_, LongPaged());
  ASSERT_TRUE(AwaitInFlight(*server_, 1));
  call.Cancel();
  const absl::Status& status = call.Join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  ASSERT_TRUE(AwaitInFlight(*server_, 0));
  EXPECT_TRUE(pool_->Bytes() == before);
  EXPECT_THAT(server_->Scrape(), HasSubstr("kvern_remembered_sequences 0\n"));
  EXPECT_THAT(server_->Scrape(),
              HasSubstr("kvern_rpc_requests_total{code=\"cancelled\",rpc=\"CompressCache\"} 1\n"));
  EXPECT_TRUE(client_->Compress(InlineRequest(8)).ok());
}

}  // namespace
}  // namespace kvern::serving
