// Every call is one unary stub method under a deadline, its status decoded.
#include "client/cpp/client.h"

#include <fstream>
#include <future>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/status_details.h"
#include "google/protobuf/unknown_field_set.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "kvern/v1/compression.grpc.pb.h"
#include "kvern/v1/model.grpc.pb.h"
#include "kvern/v1/pool.grpc.pb.h"
#include "kvern/v1/server.grpc.pb.h"
#include "kvern/v1/store.grpc.pb.h"

namespace kvern::client {
namespace {

// Room for framing and the fields that the server's own limit does not count.
constexpr int64_t kResponseSlackBytes = int64_t{1} << 20;
constexpr int64_t kHealthServing = 1;  // grpc.health.v1.HealthCheckResponse.SERVING

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  if (path.empty()) return std::string();
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || text.str().empty()) {
    return absl::InvalidArgumentError(absl::StrCat("TLS file '", path, "': cannot be read"));
  }
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> Credentials(const TlsFiles& tls) {
  if (tls.ca.empty() && tls.certificate.empty() && tls.key.empty()) {
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions options;
  KVERN_ASSIGN_OR_RETURN(options.pem_root_certs, ReadPem(tls.ca));
  KVERN_ASSIGN_OR_RETURN(options.pem_cert_chain, ReadPem(tls.certificate));
  KVERN_ASSIGN_OR_RETURN(options.pem_private_key, ReadPem(tls.key));
  return grpc::SslCredentials(options);
}

absl::Status Unreachable(const std::string& message) {
  return WithReason(absl::UnavailableError(message), "UNREACHABLE");
}

// Gives up at the first failed attempt: a missing socket is an answer, not something to wait for.
absl::Status AwaitReady(grpc::Channel& channel, const std::string& address,
                        absl::Duration patience) {
  const auto deadline = absl::ToChronoTime(absl::Now() + patience);
  grpc_connectivity_state state = channel.GetState(/*try_to_connect=*/true);
  while (state != GRPC_CHANNEL_READY) {
    if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN) {
      return Unreachable(absl::StrCat("no server answers at '", address, "'"));
    }
    if (!channel.WaitForStateChange(state, deadline)) {
      return Unreachable(absl::StrCat("no server answered at '", address, "' within ",
                                      absl::FormatDuration(patience)));
    }
    state = channel.GetState(/*try_to_connect=*/true);
  }
  return absl::OkStatus();
}

template <class Stub, class Request, class Response>
absl::StatusOr<Response> Call(const Client& client, const std::unique_ptr<Stub>& stub,
                              grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                           Response*),
                              const Request& request) {
  grpc::ClientContext context;
  client.Prepare(&context);
  Response response;
  KVERN_RETURN_IF_ERROR(FromGrpc((stub.get()->*method)(&context, request, &response)));
  return response;
}

// The wire says a chain once; callers find it in every result.
template <class Response>
absl::StatusOr<Response> WithChains(absl::StatusOr<Response> response) {
  for (int i = 1; response.ok() && i < response->results_size(); ++i) {
    v1::SequenceResult* result = response->mutable_results(i);
    if (!result->has_resolved()) *result->mutable_resolved() = response->results(i - 1).resolved();
  }
  return response;
}

}  // namespace

struct Client::Stubs {
  explicit Stubs(const std::shared_ptr<grpc::Channel>& channel)
      : compression(v1::CompressionService::NewStub(channel)),
        models(v1::ModelService::NewStub(channel)),
        pools(v1::PoolService::NewStub(channel)),
        server(v1::ServerService::NewStub(channel)),
        store(v1::StoreService::NewStub(channel)) {}
  std::unique_ptr<v1::CompressionService::Stub> compression;
  std::unique_ptr<v1::ModelService::Stub> models;
  std::unique_ptr<v1::PoolService::Stub> pools;
  std::unique_ptr<v1::ServerService::Stub> server;
  std::unique_ptr<v1::StoreService::Stub> store;
};

Client::Client(std::string address, std::shared_ptr<grpc::Channel> channel, ClientOptions options)
    : address_(std::move(address)),
      channel_(std::move(channel)),
      options_(std::move(options)),
      stubs_(std::make_shared<Stubs>(channel_)) {}

absl::StatusOr<Client> Client::Connect(const std::string& address, const ClientOptions& options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(
      static_cast<int>(options.max_response_bytes + kResponseSlackBytes));
  arguments.SetMaxSendMessageSize(-1);
  KVERN_ASSIGN_OR_RETURN(const auto credentials, Credentials(options.tls));
  auto channel = grpc::CreateCustomChannel(address, credentials, arguments);
  KVERN_RETURN_IF_ERROR(AwaitReady(*channel, address, options.connect_timeout));
  return Client(address, std::move(channel), options);
}

Client Client::OverChannel(std::shared_ptr<grpc::Channel> channel, const ClientOptions& options) {
  return Client("in-process", std::move(channel), options);
}

void Client::Prepare(grpc::ClientContext* context) const {
  context->set_deadline(absl::ToChronoTime(absl::Now() + options_.timeout));
}

absl::Status Client::Ping() const {
  grpc::ClientContext context;
  Prepare(&context);
  grpc::GenericStub stub(channel_);
  const grpc::Slice nothing;  // a HealthCheckRequest for the whole server
  const grpc::ByteBuffer request(&nothing, 1);
  grpc::ByteBuffer response;
  const auto done = std::make_shared<std::promise<grpc::Status>>();
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [done](grpc::Status status) { done->set_value(std::move(status)); });
  const absl::Status status = FromGrpc(done->get_future().get());
  // A server without the health service that answers another call is alive.
  if (absl::IsUnimplemented(status)) return GetServerInfo().status();
  KVERN_RETURN_IF_ERROR(status);
  grpc::Slice bytes;
  google::protobuf::UnknownFieldSet fields;
  if (response.DumpToSingleSlice(&bytes).ok() &&
      fields.ParseFromArray(bytes.begin(), static_cast<int>(bytes.size()))) {
    for (int i = 0; i < fields.field_count(); ++i) {
      const google::protobuf::UnknownField& field = fields.field(i);
      if (field.number() == 1 && field.type() == google::protobuf::UnknownField::TYPE_VARINT &&
          field.varint() == kHealthServing) {
        return absl::OkStatus();
      }
    }
  }
  return absl::UnavailableError(absl::StrCat("the server at '", address_, "' is not serving"));
}

absl::StatusOr<v1::GetServerInfoResponse> Client::GetServerInfo() const {
  return Call(*this, stubs_->server, &v1::ServerService::Stub::GetServerInfo,
              v1::GetServerInfoRequest());
}

absl::StatusOr<v1::ListStagesResponse> Client::ListStages() const {
  return Call(*this, stubs_->server, &v1::ServerService::Stub::ListStages, v1::ListStagesRequest());
}

absl::StatusOr<v1::CompressCacheResponse> Client::Compress(
    const v1::CompressCacheRequest& request) const {
  return WithChains(
      Call(*this, stubs_->compression, &v1::CompressionService::Stub::CompressCache, request));
}

absl::StatusOr<v1::PlanCompressionResponse> Client::PlanCompression(
    const v1::PlanCompressionRequest& request) const {
  return WithChains(
      Call(*this, stubs_->compression, &v1::CompressionService::Stub::PlanCompression, request));
}

absl::StatusOr<v1::ApplyCompressionResponse> Client::ApplyCompression(
    const v1::ApplyCompressionRequest& request) const {
  return WithChains(
      Call(*this, stubs_->compression, &v1::CompressionService::Stub::ApplyCompression, request));
}

absl::Status Client::ReleaseSequences(const std::vector<std::string>& sequence_ids) const {
  v1::ReleaseSequencesRequest request;
  request.mutable_sequence_ids()->Assign(sequence_ids.begin(), sequence_ids.end());
  return Call(*this, stubs_->compression, &v1::CompressionService::Stub::ReleaseSequences, request)
      .status();
}

absl::StatusOr<v1::Model> Client::RegisterModel(const v1::Model& model) const {
  v1::RegisterModelRequest request;
  *request.mutable_model() = model;
  KVERN_ASSIGN_OR_RETURN(
      v1::RegisterModelResponse response,
      Call(*this, stubs_->models, &v1::ModelService::Stub::RegisterModel, request));
  return std::move(*response.mutable_model());
}

absl::StatusOr<v1::Model> Client::GetModel(const std::string& name) const {
  KVERN_ASSIGN_OR_RETURN(v1::GetModelResponse response, DescribeModel(name));
  return std::move(*response.mutable_model());
}

absl::StatusOr<v1::GetModelResponse> Client::DescribeModel(const std::string& name) const {
  v1::GetModelRequest request;
  request.set_name(name);
  return Call(*this, stubs_->models, &v1::ModelService::Stub::GetModel, request);
}

absl::StatusOr<v1::ListModelsResponse> Client::ListModels() const {
  return Call(*this, stubs_->models, &v1::ModelService::Stub::ListModels, v1::ListModelsRequest());
}

absl::Status Client::DeleteModel(const std::string& name) const {
  v1::DeleteModelRequest request;
  request.set_name(name);
  return Call(*this, stubs_->models, &v1::ModelService::Stub::DeleteModel, request).status();
}

absl::StatusOr<v1::RegisterPoolResponse> Client::RegisterPool(const v1::Pool& pool) const {
  v1::RegisterPoolRequest request;
  *request.mutable_pool() = pool;
  return Call(*this, stubs_->pools, &v1::PoolService::Stub::RegisterPool, request);
}

absl::StatusOr<v1::ListPoolsResponse> Client::ListPools() const {
  return Call(*this, stubs_->pools, &v1::PoolService::Stub::ListPools, v1::ListPoolsRequest());
}

absl::Status Client::UnregisterPool(const std::string& name) const {
  v1::UnregisterPoolRequest request;
  request.set_name(name);
  return Call(*this, stubs_->pools, &v1::PoolService::Stub::UnregisterPool, request).status();
}

absl::StatusOr<int64_t> Client::KeepPoolAlive(const std::string& name) const {
  v1::KeepPoolAliveRequest request;
  request.set_name(name);
  KVERN_ASSIGN_OR_RETURN(
      const v1::KeepPoolAliveResponse response,
      Call(*this, stubs_->pools, &v1::PoolService::Stub::KeepPoolAlive, request));
  return response.lease_seconds();
}

absl::StatusOr<v1::StoredSequence> Client::GetSequence(const std::string& name) const {
  v1::GetSequenceRequest request;
  request.set_name(name);
  KVERN_ASSIGN_OR_RETURN(v1::GetSequenceResponse response,
                         Call(*this, stubs_->store, &v1::StoreService::Stub::GetSequence, request));
  return std::move(*response.mutable_sequence());
}

absl::StatusOr<v1::ListSequencesResponse> Client::ListSequences() const {
  return Call(*this, stubs_->store, &v1::StoreService::Stub::ListSequences,
              v1::ListSequencesRequest());
}

absl::Status Client::DeleteSequence(const std::string& name) const {
  v1::DeleteSequenceRequest request;
  request.set_name(name);
  return Call(*this, stubs_->store, &v1::StoreService::Stub::DeleteSequence, request).status();
}

absl::Status SequenceStatus(const v1::SequenceResult& result) {
  if (result.outcome() == v1::OUTCOME_APPLIED || result.outcome() == v1::OUTCOME_NOOP) {
    return absl::OkStatus();
  }
  absl::Status status = FromRpcStatus(result.status());
  if (!status.ok()) return status;
  return absl::InternalError(absl::StrCat("sequence '", result.sequence_id(), "': the server says ",
                                          v1::Outcome_Name(result.outcome()), " without a reason"));
}

}  // namespace kvern::client
