// The store's calls: streams in and out, and the quick ones.
#ifndef KVERN_SERVER_RPC_STORE_SERVICE_H_
#define KVERN_SERVER_RPC_STORE_SERVICE_H_

#include "kvern/v1/store.grpc.pb.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

// Uploads come as the bytes they are on the wire, so that theirs are copied once.
using StoreCallbacks = v1::StoreService::WithRawCallbackMethod_PutSequence<
    v1::StoreService::WithRawCallbackMethod_AppendSequence<v1::StoreService::CallbackService>>;

class StoreService final : public StoreCallbacks {
 public:
  explicit StoreService(const ServiceDeps& deps) : deps_(deps) {}

  grpc::ServerReadReactor<grpc::ByteBuffer>* PutSequence(grpc::CallbackServerContext* context,
                                                         grpc::ByteBuffer* response) override;
  grpc::ServerReadReactor<grpc::ByteBuffer>* AppendSequence(grpc::CallbackServerContext* context,
                                                            grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<v1::FetchSequenceResponse>* FetchSequence(
      grpc::CallbackServerContext* context, const v1::FetchSequenceRequest* request) override;
  grpc::ServerUnaryReactor* GetSequence(grpc::CallbackServerContext* context,
                                        const v1::GetSequenceRequest* request,
                                        v1::GetSequenceResponse* response) override;
  grpc::ServerUnaryReactor* ListSequences(grpc::CallbackServerContext* context,
                                          const v1::ListSequencesRequest* request,
                                          v1::ListSequencesResponse* response) override;
  grpc::ServerUnaryReactor* DeleteSequence(grpc::CallbackServerContext* context,
                                           const v1::DeleteSequenceRequest* request,
                                           v1::DeleteSequenceResponse* response) override;

 private:
  absl::Status Get(const v1::GetSequenceRequest& request, v1::GetSequenceResponse* response);

  const ServiceDeps deps_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_STORE_SERVICE_H_
