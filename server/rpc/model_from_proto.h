// Models: the geometry on which all later size checks rest.
#ifndef KVERN_SERVER_RPC_MODEL_FROM_PROTO_H_
#define KVERN_SERVER_RPC_MODEL_FROM_PROTO_H_

#include "absl/status/statusor.h"
#include "kvern/v1/model.pb.h"
#include "server/engine/model_registry.h"
#include "server/memory/limits.h"
#include "server/rpc/field_path.h"

namespace kvern::rpc {

absl::StatusOr<pipeline::ModelSpec> FromProto(const v1::ModelSpec& spec, const Limits& limits,
                                              const FieldPath& path);
absl::StatusOr<engine::RegisteredModel> FromProto(const v1::RegisterModelRequest& request,
                                                  const Limits& limits);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_MODEL_FROM_PROTO_H_
