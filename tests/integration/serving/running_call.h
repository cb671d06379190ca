// A call that a server needs long for, and the sight of it from outside.
#ifndef KVERN_TESTS_INTEGRATION_SERVING_RUNNING_CALL_H_
#define KVERN_TESTS_INTEGRATION_SERVING_RUNNING_CALL_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "client/cpp/client.h"
#include "client/cpp/status_details.h"
#include "kvern/v1/compression.grpc.pb.h"
#include "tests/integration/hostile/eventually.h"
#include "tests/integration/hostile/test_pool.h"
#include "tests/support/server_process.h"

namespace kvern::serving {

inline constexpr int64_t kLongTokens = 8192;

// Diverse picks depend on each other: no thread count makes them quick. With --backend ref and
// kLongTokens one call takes seconds.
inline v1::CompressCacheRequest LongRequest(v1::CompressCacheRequest request) {
  request.mutable_policy()->mutable_selector()->set_name("diverse");
  return request;
}

// Starts at once; ends in Join.
class RunningCall {
 public:
  RunningCall(const client::Client& client, v1::CompressCacheRequest request,
              std::chrono::milliseconds deadline = std::chrono::minutes(5))
      : stub_(v1::CompressionService::NewStub(client.Channel())), request_(std::move(request)) {
    context_.set_deadline(std::chrono::system_clock::now() + deadline);
    thread_ = std::thread([this] {
      status_ = client::FromGrpc(stub_->CompressCache(&context_, request_, &response_));
    });
  }
  ~RunningCall() {
    if (!thread_.joinable()) return;
    context_.TryCancel();
    thread_.join();
  }
  RunningCall(const RunningCall&) = delete;
  RunningCall& operator=(const RunningCall&) = delete;

  void Cancel() { context_.TryCancel(); }
  const absl::Status& Join() {
    thread_.join();
    return status_;
  }
  const v1::CompressCacheResponse& Response() const { return response_; }

 private:
  const std::unique_ptr<v1::CompressionService::Stub> stub_;
  const v1::CompressCacheRequest request_;
  grpc::ClientContext context_;
  v1::CompressCacheResponse response_;
  absl::Status status_;
  std::thread thread_;
};

// True when `line` becomes part of the page.
inline bool AwaitMetric(const support::ServerProcess& server, const std::string& line) {
  return hostile::Eventually(
      [&] { return server.Scrape().find(line + "\n") != std::string::npos; });
}

inline bool AwaitInFlight(const support::ServerProcess& server, int calls) {
  return AwaitMetric(server, "kvern_rpc_in_flight{rpc=\"CompressCache\"} " + std::to_string(calls));
}

}  // namespace kvern::serving

#endif  // KVERN_TESTS_INTEGRATION_SERVING_RUNNING_CALL_H_
