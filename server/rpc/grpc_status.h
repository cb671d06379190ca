// The one place where a status changes type: absl::Status to grpc::Status with google.rpc details.
#ifndef KVERN_SERVER_RPC_GRPC_STATUS_H_
#define KVERN_SERVER_RPC_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"

namespace kvern::rpc {

// Message cut at 1 KiB; details: ErrorInfo when a reason is attached, BadRequest when a field is,
// RetryInfo with a ResourceExhausted that waiting may cure: one without a field (its size is at
// fault), RESPONSE_TOO_LARGE or QUOTA.
google::rpc::Status ToProto(const absl::Status& status);
grpc::Status ToGrpc(const absl::Status& status);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_GRPC_STATUS_H_
