// PlanCompression and ApplyCompression in flight.
#ifndef KVERN_SERVER_RPC_PLAN_CALLS_H_
#define KVERN_SERVER_RPC_PLAN_CALLS_H_

#include "kvern/v1/compression.grpc.pb.h"
#include "server/rpc/service_deps.h"

namespace kvern::rpc {

// Each owns itself until gRPC is done with it.
grpc::ServerUnaryReactor* StartPlan(const ServiceDeps& deps, grpc::CallbackServerContext* context,
                                    const v1::PlanCompressionRequest& request,
                                    v1::PlanCompressionResponse* response);
grpc::ServerUnaryReactor* StartApply(const ServiceDeps& deps, grpc::CallbackServerContext* context,
                                     const v1::ApplyCompressionRequest& request,
                                     v1::ApplyCompressionResponse* response);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_PLAN_CALLS_H_
