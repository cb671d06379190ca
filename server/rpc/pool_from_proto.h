// Pools: a description of foreign memory, checked for form here and for reach in server/memory.
#ifndef KVERN_SERVER_RPC_POOL_FROM_PROTO_H_
#define KVERN_SERVER_RPC_POOL_FROM_PROTO_H_

#include "absl/status/statusor.h"
#include "kvern/v1/pool.pb.h"
#include "server/memory/limits.h"
#include "server/memory/pool.h"
#include "server/pipeline/model.h"

namespace kvern::rpc {

// Everything but the model's geometry.
absl::StatusOr<memory::PoolSpec> FromProto(const v1::RegisterPoolRequest& request,
                                           const Limits& limits);
// Takes heads and dims from the model. Errors: InvalidArgument for a layer it does not have.
absl::Status BindModel(const pipeline::ModelSpec& model, memory::PoolSpec* pool);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_POOL_FROM_PROTO_H_
