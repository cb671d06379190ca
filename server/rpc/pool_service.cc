// Pools are described here and checked in server/memory; answers never name an attachment.
#include "server/rpc/pool_service.h"

#include <memory>
#include <string>
#include <utility>

#include "kernels/base/status_macros.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/pool_from_proto.h"
#include "server/rpc/resource_to_proto.h"

namespace kvern::rpc {
namespace {

void Tell(engine::EngineEvents* events, engine::PoolEvent event) {
  if (events != nullptr) events->OnPoolEvent(event);
}

// Mapping and unmapping memory of a device may wait for work that it has begun: then not on gRPC's
// threads. run() -> absl::Status, copied.
template <class Run>
grpc::ServerUnaryReactor* RunMapping(const ServiceDeps& deps, grpc::CallbackServerContext* context,
                                     RpcScope scope, const Run& run) {
  if (!deps.engine->Device().has_value()) return RunUnary(context, std::move(scope), run);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const auto shared = std::make_shared<RpcScope>(std::move(scope));
  const absl::Status posted = deps.worker->Post([=] { reactor->Finish(shared->End(run())); });
  if (!posted.ok()) reactor->Finish(shared->End(posted));
  return reactor;
}

// Whoever knows a handle can have its memory opened. Over Unix sockets that is who may open the
// socket; over TCP it could be anybody.
absl::Status CheckReach(const v1::RegisterPoolRequest& request, const std::string& peer) {
  if (peer == "unix" || peer == "inproc") return absl::OkStatus();
  const FieldPath pool("pool");
  const FieldPath regions = pool.Child("regions");
  for (int i = 0; i < request.pool().regions_size(); ++i) {
    if (!request.pool().regions(i).has_cuda_ipc()) continue;
    return BadField(regions.At(i), "got a CUDA IPC handle over TCP, want a Unix socket");
  }
  return absl::OkStatus();
}

}  // namespace

grpc::ServerUnaryReactor* PoolService::RegisterPool(grpc::CallbackServerContext* context,
                                                    const v1::RegisterPoolRequest* request,
                                                    v1::RegisterPoolResponse* response) {
  RpcScope scope = deps_.Scope(engine::Rpc::kRegisterPool, *context);
  const absl::Status reach = CheckReach(*request, scope.Peer());
  return RunMapping(deps_, context, std::move(scope),
                    [=, this] { return reach.ok() ? Register(*request, response) : reach; });
}

grpc::ServerUnaryReactor* PoolService::GetPool(grpc::CallbackServerContext* context,
                                               const v1::GetPoolRequest* request,
                                               v1::GetPoolResponse* response) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kGetPool, *context),
                  [&] { return Get(*request, response); });
}

grpc::ServerUnaryReactor* PoolService::ListPools(grpc::CallbackServerContext* context,
                                                 const v1::ListPoolsRequest*,
                                                 v1::ListPoolsResponse* response) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kListPools, *context), [&] {
    for (const auto& pool : deps_.engine->Pools().List()) ToProto(*pool, response->add_pools());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* PoolService::UnregisterPool(grpc::CallbackServerContext* context,
                                                      const v1::UnregisterPoolRequest* request,
                                                      v1::UnregisterPoolResponse*) {
  RpcScope scope = deps_.Scope(engine::Rpc::kUnregisterPool, *context);
  return RunMapping(deps_, context, std::move(scope), [request, this] {
    const auto id = ParseName(request->name(), Collection::kPools, FieldPath("name"));
    if (id.ok() && deps_.engine->Pools().Unregister(*id)) {
      Tell(deps_.engine->Events(), engine::PoolEvent::kUnregister);
    }
    return id.status();
  });
}

grpc::ServerUnaryReactor* PoolService::KeepPoolAlive(grpc::CallbackServerContext* context,
                                                     const v1::KeepPoolAliveRequest* request,
                                                     v1::KeepPoolAliveResponse* response) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kKeepPoolAlive, *context),
                  [&] { return KeepAlive(*request, response); });
}

absl::Status PoolService::Register(const v1::RegisterPoolRequest& request,
                                   v1::RegisterPoolResponse* response) {
  KVERN_ASSIGN_OR_RETURN(memory::PoolSpec spec, FromProto(request, deps_.GetLimits()));
  KVERN_ASSIGN_OR_RETURN(const auto model, deps_.engine->Models().Find(spec.model));
  KVERN_RETURN_IF_ERROR(BindModel(model->spec, &spec));
  KVERN_ASSIGN_OR_RETURN(const std::shared_ptr<const memory::Pool> pool,
                         deps_.engine->Pools().Register(std::move(spec)));
  Tell(deps_.engine->Events(), engine::PoolEvent::kRegister);
  ToProto(*pool, response->mutable_pool());
  response->set_mapped_bytes(pool->mapped_bytes);
  if (pool->leased) response->set_lease_seconds(deps_.GetLimits().pool_lease);
  return absl::OkStatus();
}

absl::Status PoolService::Get(const v1::GetPoolRequest& request, v1::GetPoolResponse* response) {
  KVERN_ASSIGN_OR_RETURN(const std::string id,
                         ParseName(request.name(), Collection::kPools, FieldPath("name")));
  KVERN_ASSIGN_OR_RETURN(const std::shared_ptr<const memory::Pool> pool,
                         deps_.engine->Pools().Find(id));
  ToProto(*pool, response->mutable_pool());
  response->set_mapped_bytes(pool->mapped_bytes);
  return absl::OkStatus();
}

absl::Status PoolService::KeepAlive(const v1::KeepPoolAliveRequest& request,
                                    v1::KeepPoolAliveResponse* response) {
  KVERN_ASSIGN_OR_RETURN(const std::string id,
                         ParseName(request.name(), Collection::kPools, FieldPath("name")));
  KVERN_ASSIGN_OR_RETURN(const int64_t seconds, deps_.engine->Pools().Renew(id));
  response->set_lease_seconds(seconds);
  return absl::OkStatus();
}

}  // namespace kvern::rpc
