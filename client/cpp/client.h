// A connection to a Kvern server.
//
//   auto client = kvern::client::Client::Connect("unix:/run/kvern/kvern.sock").value();
//   auto cache = kvern::client::CacheFile::Open("prompt.safetensors").value();
//   auto model = client.RegisterModel(kvern::client::ModelOf(cache).value()).value();
//   auto small = kvern::client::CompressFile(client, cache, {.model = model.name()}).value();
//   std::cout << small.result.num_physical_tokens() << " tokens kept\n";
#ifndef KVERN_CLIENT_CPP_CLIENT_H_
#define KVERN_CLIENT_CPP_CLIENT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvern/v1/compression.pb.h"
#include "kvern/v1/model.pb.h"
#include "kvern/v1/pool.pb.h"
#include "kvern/v1/server.pb.h"
#include "kvern/v1/store.pb.h"

namespace grpc {
class Channel;
class ClientContext;
}  // namespace grpc

namespace kvern::client {

// PEM files of a TLS connection over TCP. All empty: no TLS.
struct TlsFiles {
  std::string ca = {};           // whom to trust
  std::string certificate = {};  // own certificate, for servers that ask for one
  std::string key = {};          // its key
};

struct ClientOptions {
  absl::Duration timeout = absl::Seconds(60);         // of each call
  absl::Duration connect_timeout = absl::Seconds(5);  // of Connect
  int64_t max_response_bytes = int64_t{64} << 20;     // as the server's limit of that name
  TlsFiles tls = {};
};

// A handle: copies share the connection. Thread-safe. Every error carries what the server said:
// ReasonOf, FieldOf (kernels/base/error_reason.h), RetryDelayOf (status_details.h).
class Client {
 public:
  // `unix:PATH` or `HOST:PORT`. Errors: Unavailable/UNREACHABLE when no server answers in time;
  // InvalidArgument for unreadable TLS files.
  static absl::StatusOr<Client> Connect(const std::string& address,
                                        const ClientOptions& options = {});
  // Over a channel that exists, for example a server's in-process one.
  static Client OverChannel(std::shared_ptr<grpc::Channel> channel,
                            const ClientOptions& options = {});

  // As given to Connect; `in-process` over a channel.
  const std::string& Address() const { return address_; }

  // grpc.health.v1. Errors: Unavailable when not reachable or not serving.
  absl::Status Ping() const;
  absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo() const;
  absl::StatusOr<v1::ListStagesResponse> ListStages() const;

  // One step's cohort. Faults of one sequence stand in its result: see SequenceStatus.
  absl::StatusOr<v1::CompressCacheResponse> Compress(const v1::CompressCacheRequest& request) const;
  // The two phases of an asynchronous scheduler: choose while a step runs, move between steps.
  absl::StatusOr<v1::PlanCompressionResponse> PlanCompression(
      const v1::PlanCompressionRequest& request) const;
  absl::StatusOr<v1::ApplyCompressionResponse> ApplyCompression(
      const v1::ApplyCompressionRequest& request) const;
  absl::Status ReleaseSequences(const std::vector<std::string>& sequence_ids) const;

  // An empty name is derived from the spec; the same spec again succeeds.
  absl::StatusOr<v1::Model> RegisterModel(const v1::Model& model) const;
  absl::StatusOr<v1::Model> GetModel(const std::string& name) const;
  // With its artifacts and what was observed of its queries (observe.h).
  absl::StatusOr<v1::GetModelResponse> DescribeModel(const std::string& name) const;
  absl::StatusOr<v1::ListModelsResponse> ListModels() const;
  absl::Status DeleteModel(const std::string& name) const;

  // SharedPool does this with memory of its own.
  absl::StatusOr<v1::RegisterPoolResponse> RegisterPool(const v1::Pool& pool) const;
  absl::StatusOr<v1::ListPoolsResponse> ListPools() const;
  absl::Status UnregisterPool(const std::string& name) const;
  // Seconds until the pool expires unless it is renewed again; 0: it needs no renewal.
  absl::StatusOr<int64_t> KeepPoolAlive(const std::string& name) const;

  // Bytes travel in upload.h.
  absl::StatusOr<v1::StoredSequence> GetSequence(const std::string& name) const;
  absl::StatusOr<v1::ListSequencesResponse> ListSequences() const;
  absl::Status DeleteSequence(const std::string& name) const;

  const std::shared_ptr<grpc::Channel>& Channel() const { return channel_; }
  // Sets the deadline of one call.
  void Prepare(grpc::ClientContext* context) const;

 private:
  struct Stubs;
  Client(std::string address, std::shared_ptr<grpc::Channel> channel, ClientOptions options);

  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  ClientOptions options_;
  std::shared_ptr<Stubs> stubs_;
};

// OK for APPLIED and NOOP, else why not.
absl::Status SequenceStatus(const v1::SequenceResult& result);

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_CLIENT_H_
