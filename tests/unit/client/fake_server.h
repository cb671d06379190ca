// A server on a Unix socket that answers from a script and remembers what it was asked.
#ifndef KVERN_TESTS_UNIT_CLIENT_FAKE_SERVER_H_
#define KVERN_TESTS_UNIT_CLIENT_FAKE_SERVER_H_

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "grpcpp/grpcpp.h"
#include "kvern/v1/compression.grpc.pb.h"
#include "kvern/v1/model.grpc.pb.h"
#include "kvern/v1/pool.grpc.pb.h"
#include "kvern/v1/server.grpc.pb.h"
#include "kvern/v1/store.grpc.pb.h"

namespace kvern {

class FakeServer final : public v1::CompressionService::Service,
                         public v1::ModelService::Service,
                         public v1::PoolService::Service,
                         public v1::ServerService::Service,
                         public v1::StoreService::Service {
 public:
  explicit FakeServer(const std::string& socket_path) {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket_path, grpc::InsecureServerCredentials());
    builder.RegisterService(static_cast<v1::CompressionService::Service*>(this));
    builder.RegisterService(static_cast<v1::ModelService::Service*>(this));
    builder.RegisterService(static_cast<v1::PoolService::Service*>(this));
    builder.RegisterService(static_cast<v1::ServerService::Service*>(this));
    builder.RegisterService(static_cast<v1::StoreService::Service*>(this));
    server = builder.BuildAndStart();
  }
  ~FakeServer() override { server->Shutdown(); }

  grpc::Status GetServerInfo(grpc::ServerContext*, const v1::GetServerInfoRequest*,
                             v1::GetServerInfoResponse* response) override {
    *response = info;
    return grpc::Status::OK;
  }
  grpc::Status RegisterPool(grpc::ServerContext*, const v1::RegisterPoolRequest* request,
                            v1::RegisterPoolResponse* response) override {
    pool = request->pool();
    response->mutable_pool()->set_name("pools/1");
    response->set_lease_seconds(lease_seconds);
    return refusal;
  }
  grpc::Status KeepPoolAlive(grpc::ServerContext*, const v1::KeepPoolAliveRequest* request,
                             v1::KeepPoolAliveResponse* response) override {
    response->set_lease_seconds(lease_seconds);
    const bool ours = request->name() == "pools/1" && ++renewals <= renewals_granted;
    return ours ? grpc::Status::OK : grpc::Status(grpc::StatusCode::NOT_FOUND, "expired");
  }
  grpc::Status UnregisterPool(grpc::ServerContext*, const v1::UnregisterPoolRequest* request,
                              v1::UnregisterPoolResponse*) override {
    unregistered.push_back(request->name());
    return grpc::Status::OK;
  }
  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    *response = models;
    return grpc::Status::OK;
  }
  grpc::Status ImportCalibration(grpc::ServerContext*,
                                 grpc::ServerReader<v1::ImportCalibrationRequest>* reader,
                                 v1::ImportCalibrationResponse* response) override {
    ++imports;
    v1::ImportCalibrationRequest request;
    while (reader->Read(&request)) {
      sha256 += request.sha256();
      artifact += request.data();
    }
    response->mutable_calibration()->set_name("calibrations/new");
    return grpc::Status::OK;
  }
  grpc::Status PutSequence(grpc::ServerContext*, grpc::ServerReader<v1::PutSequenceRequest>* reader,
                           v1::PutSequenceResponse* response) override {
    if (!refusal.ok()) return refusal;  // with the client still writing
    v1::PutSequenceRequest request;
    while (reader->Read(&request)) {
      if (request.has_header()) {
        *response->mutable_sequence() = request.header();
      } else {
        (request.chunk().part() == v1::Chunk::PART_K ? put_k : put_v) += request.chunk().data();
        largest_chunk = std::max(largest_chunk, request.chunk().data().size());
      }
    }
    return grpc::Status::OK;
  }
  grpc::Status FetchSequence(grpc::ServerContext*, const v1::FetchSequenceRequest*,
                             grpc::ServerWriter<v1::FetchSequenceResponse>* writer) override {
    for (const v1::FetchSequenceResponse& message : fetch) writer->Write(message);
    return grpc::Status::OK;
  }
  grpc::Status DeleteModel(grpc::ServerContext*, const v1::DeleteModelRequest*,
                           v1::DeleteModelResponse*) override {
    return refusal;
  }

  v1::GetServerInfoResponse info;
  v1::ListModelsResponse models;
  std::vector<v1::FetchSequenceResponse> fetch;
  grpc::Status refusal;
  v1::Pool pool;
  std::vector<std::string> unregistered;
  int64_t lease_seconds = 0;
  int renewals_granted = 1 << 20;
  std::atomic<int> renewals{0};
  int imports = 0;
  std::string sha256, artifact, put_k, put_v;
  size_t largest_chunk = 0;
  std::unique_ptr<grpc::Server> server;
};

}  // namespace kvern

#endif  // KVERN_TESTS_UNIT_CLIENT_FAKE_SERVER_H_
