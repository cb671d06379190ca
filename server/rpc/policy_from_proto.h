// Policies as asked for: every enum and range is checked here, stage names by the pipeline.
#ifndef KVERN_SERVER_RPC_POLICY_FROM_PROTO_H_
#define KVERN_SERVER_RPC_POLICY_FROM_PROTO_H_

#include "absl/status/statusor.h"
#include "kvern/v1/types.pb.h"
#include "server/memory/limits.h"
#include "server/pipeline/policy.h"
#include "server/rpc/field_path.h"

namespace kvern::rpc {

absl::StatusOr<pipeline::Policy> FromProto(const v1::Policy& policy, const Limits& limits,
                                           const FieldPath& path);
// Unspecified is S2.
absl::StatusOr<pipeline::ShapeClass> FromProto(v1::ShapeClass shape_class, const FieldPath& path);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_POLICY_FROM_PROTO_H_
