// CompressCache, its two phases apart, and ReleaseSequences. Compression runs on the engine's
// worker, never on gRPC's threads; the reply is sent from its callback.
#ifndef KVERN_SERVER_RPC_COMPRESSION_SERVICE_H_
#define KVERN_SERVER_RPC_COMPRESSION_SERVICE_H_

#include <grpcpp/support/message_allocator.h>

#include "kvern/v1/compression.grpc.pb.h"
#include "server/rpc/plan_calls.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

// Makes requests that outlive their call: the engine's job shares them, so that inline bytes are
// read where gRPC put them.
class CompressAllocator final
    : public grpc::MessageAllocator<v1::CompressCacheRequest, v1::CompressCacheResponse> {
 public:
  grpc::MessageHolder<v1::CompressCacheRequest, v1::CompressCacheResponse>* AllocateMessages()
      override;
};

class CompressionService final : public v1::CompressionService::CallbackService {
 public:
  explicit CompressionService(const ServiceDeps& deps);

  grpc::ServerUnaryReactor* CompressCache(grpc::CallbackServerContext* context,
                                          const v1::CompressCacheRequest* request,
                                          v1::CompressCacheResponse* response) override;
  grpc::ServerUnaryReactor* PlanCompression(grpc::CallbackServerContext* context,
                                            const v1::PlanCompressionRequest* request,
                                            v1::PlanCompressionResponse* response) override {
    return StartPlan(deps_, context, *request, response);
  }
  grpc::ServerUnaryReactor* ApplyCompression(grpc::CallbackServerContext* context,
                                             const v1::ApplyCompressionRequest* request,
                                             v1::ApplyCompressionResponse* response) override {
    return StartApply(deps_, context, *request, response);
  }
  grpc::ServerUnaryReactor* ReleaseSequences(grpc::CallbackServerContext* context,
                                             const v1::ReleaseSequencesRequest* request,
                                             v1::ReleaseSequencesResponse* response) override;

 private:
  const ServiceDeps deps_;
  CompressAllocator allocator_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_COMPRESSION_SERVICE_H_
