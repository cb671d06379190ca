// RegisterPool, GetPool, ListPools, UnregisterPool, KeepPoolAlive.
#ifndef KVERN_SERVER_RPC_POOL_SERVICE_H_
#define KVERN_SERVER_RPC_POOL_SERVICE_H_

#include "kvern/v1/pool.grpc.pb.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

class PoolService final : public v1::PoolService::CallbackService {
 public:
  explicit PoolService(const ServiceDeps& deps) : deps_(deps) {}

  grpc::ServerUnaryReactor* RegisterPool(grpc::CallbackServerContext* context,
                                         const v1::RegisterPoolRequest* request,
                                         v1::RegisterPoolResponse* response) override;
  grpc::ServerUnaryReactor* GetPool(grpc::CallbackServerContext* context,
                                    const v1::GetPoolRequest* request,
                                    v1::GetPoolResponse* response) override;
  grpc::ServerUnaryReactor* ListPools(grpc::CallbackServerContext* context,
                                      const v1::ListPoolsRequest* request,
                                      v1::ListPoolsResponse* response) override;
  grpc::ServerUnaryReactor* UnregisterPool(grpc::CallbackServerContext* context,
                                           const v1::UnregisterPoolRequest* request,
                                           v1::UnregisterPoolResponse* response) override;
  grpc::ServerUnaryReactor* KeepPoolAlive(grpc::CallbackServerContext* context,
                                          const v1::KeepPoolAliveRequest* request,
                                          v1::KeepPoolAliveResponse* response) override;

 private:
  absl::Status Register(const v1::RegisterPoolRequest& request, v1::RegisterPoolResponse* response);
  absl::Status KeepAlive(const v1::KeepPoolAliveRequest& request,
                         v1::KeepPoolAliveResponse* response);
  absl::Status Get(const v1::GetPoolRequest& request, v1::GetPoolResponse* response);

  const ServiceDeps deps_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_POOL_SERVICE_H_
