// A server under attack, and the witnesses that it took no harm: a request whose answer is known,
// and a pool whose bytes are.
#ifndef KVERN_TESTS_INTEGRATION_HOSTILE_HOSTILE_SERVER_H_
#define KVERN_TESTS_INTEGRATION_HOSTILE_HOSTILE_SERVER_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/cpp/client.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "tests/integration/hostile/test_pool.h"
#include "tests/support/server_process.h"

namespace kvern::hostile {

inline constexpr int64_t kTokens = 200;
inline constexpr int64_t kPoolBlocks = 40;
inline constexpr uint64_t kGoldenEpoch = 7;

class HostileServer {
 public:
  static absl::StatusOr<std::unique_ptr<HostileServer>> Start(std::vector<std::string> flags) {
    auto server = std::make_unique<HostileServer>();
    flags.insert(flags.end(), {"--threads", "2"});
    server->process_ = support::ServerProcess::Start(flags);
    if (server->process_ == nullptr) return absl::UnavailableError("kvernd did not start");
    KVERN_ASSIGN_OR_RETURN(client::Client client,
                           client::Client::Connect(server->process_->Address()));
    server->client_ = std::make_unique<client::Client>(std::move(client));
    KVERN_RETURN_IF_ERROR(server->client_->RegisterModel(TestModel()).status());
    KVERN_ASSIGN_OR_RETURN(server->pool_, TestPool::Register(*server->client_, *server->process_,
                                                             "victim", kPoolBlocks));
    server->pool_bytes_ = server->pool_->Bytes();
    KVERN_ASSIGN_OR_RETURN(server->golden_, server->AskGolden());
    return server;
  }

  const client::Client& Client() const { return *client_; }
  support::ServerProcess& Process() { return *process_; }
  const TestPool& Pool() const { return *pool_; }
  v1::CompressCacheRequest Paged() const { return PagedRequest(pool_->Name(), kTokens); }

  // Why the call, or its first sequence that did not succeed, was refused.
  absl::Status Compress(const v1::CompressCacheRequest& request) const {
    KVERN_ASSIGN_OR_RETURN(const v1::CompressCacheResponse response, client_->Compress(request));
    for (const v1::SequenceResult& result : response.results()) {
      KVERN_RETURN_IF_ERROR(client::SequenceStatus(result));
    }
    return absl::OkStatus();
  }

  // Byte for byte the answer of the first time, and the pool as it was.
  void ExpectUnharmed() {
    process_->Log();  // a full pipe would stop the server
    const absl::StatusOr<std::string> golden = AskGolden();
    ASSERT_TRUE(golden.ok()) << golden.status();
    EXPECT_TRUE(*golden == golden_) << "the golden request has another answer than before";
    EXPECT_TRUE(pool_->Bytes() == pool_bytes_) << "bytes of the pool changed";
  }

 private:
  // One paged and one inline sequence; what comes back depends on every byte of both.
  absl::StatusOr<std::string> AskGolden() const {
    v1::CompressCacheRequest request = Paged();
    request.mutable_policy()->set_placement(v1::PLACEMENT_INDICES_ONLY);
    request.mutable_sequences(0)->set_sequence_id("golden");
    request.mutable_sequences(0)->set_epoch(kGoldenEpoch);
    const v1::CompressCacheRequest bytes = InlineRequest(kTokens);
    v1::SequenceRequest* packed = request.add_sequences();
    *packed = bytes.sequences(0);
    *packed->mutable_policy() = bytes.policy();
    packed->mutable_policy()->mutable_codecs()->set_k("lm4+rm");
    packed->mutable_policy()->mutable_codecs()->set_v("lm4");
    for (const char* path : {"kept", "positions", "scores", "packed"}) {
      request.mutable_response_mask()->add_paths(path);
    }
    KVERN_ASSIGN_OR_RETURN(v1::CompressCacheResponse response, client_->Compress(request));
    for (v1::SequenceResult& result : *response.mutable_results()) {
      KVERN_RETURN_IF_ERROR(client::SequenceStatus(result));
      result.clear_timings();
    }
    return response.SerializeAsString();
  }

  std::unique_ptr<support::ServerProcess> process_;
  std::unique_ptr<client::Client> client_;
  std::unique_ptr<TestPool> pool_;
  std::string pool_bytes_;
  std::string golden_;
};

// One server for all tests of a suite.
class HostileTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto server = HostileServer::Start({"--store-bytes", "32MiB"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = server->release();
  }
  static void TearDownTestSuite() {
    delete server_;
    server_ = nullptr;
  }
  void SetUp() override { ASSERT_NE(server_, nullptr); }
  void TearDown() override { server_->ExpectUnharmed(); }

  static inline HostileServer* server_ = nullptr;
};

// What a refusal must say.
struct Refusal {
  std::string field;  // of BadRequest
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
  std::string reason = {};  // of ErrorInfo
  std::string says = {};    // part of the message
};

inline void ExpectRefused(const absl::Status& status, const Refusal& want) {
  EXPECT_EQ(absl::StatusCodeToString(status.code()), absl::StatusCodeToString(want.code)) << status;
  EXPECT_EQ(FieldOf(status), want.field) << status;
  EXPECT_EQ(ReasonOf(status), want.reason) << status;
  const std::string message(status.message());
  EXPECT_THAT(message, testing::HasSubstr(want.says));
  if (want.code == absl::StatusCode::kInvalidArgument) {
    EXPECT_THAT(message, testing::HasSubstr("got "));
    EXPECT_THAT(message, testing::HasSubstr("want "));
  }
  // Never an address, a path or an internal name.
  EXPECT_THAT(message, testing::Not(testing::ContainsRegex("0x[0-9a-f]|/tmp|/proc|::|\\.cc")));
}

// A valid request with one thing wrong in it.
struct BadRequestCase {
  std::string what;
  std::function<void(v1::CompressCacheRequest*)> spoil;
  Refusal want;
};

}  // namespace kvern::hostile

#endif  // KVERN_TESTS_INTEGRATION_HOSTILE_HOSTILE_SERVER_H_
