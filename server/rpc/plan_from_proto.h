// PlanCompression and ApplyCompression of the wire become the engine's jobs.
#ifndef KVERN_SERVER_RPC_PLAN_FROM_PROTO_H_
#define KVERN_SERVER_RPC_PLAN_FROM_PROTO_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvern/v1/compression.pb.h"
#include "server/engine/chosen_plan.h"
#include "server/memory/limits.h"
#include "server/rpc/sequence_from_proto.h"

namespace kvern::rpc {

struct PlanRequest {
  engine::CompressJob job;  // but for peer, deadline and cancellation
  absl::Duration patience;
};
// Field paths are those inside `compression`. Errors: as of CompressCache's FromProto;
// InvalidArgument for a request_id, validate_only, inline sources, ttl_seconds.
absl::StatusOr<PlanRequest> FromProto(const v1::PlanCompressionRequest& request, const Edge& edge);

// The job but for peer, deadline and cancellation.
absl::StatusOr<engine::ApplyJob> FromProto(const v1::ApplyCompressionRequest& request,
                                           const Limits& limits);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_PLAN_FROM_PROTO_H_
