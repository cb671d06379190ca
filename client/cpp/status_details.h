// From statuses of the wire to absl::Status: reason, field and retry delay ride along.
#ifndef KVERN_CLIENT_CPP_STATUS_DETAILS_H_
#define KVERN_CLIENT_CPP_STATUS_DETAILS_H_

#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

namespace kvern::client {

// Code and message as sent; ReasonOf, FieldOf (kernels/base/error_reason.h) and RetryDelayOf read
// what the google.rpc details said. Details that do not parse are ignored.
absl::Status FromGrpc(const grpc::Status& status);
absl::Status FromRpcStatus(const google::rpc::Status& status);

// How long the server asks to wait before another try; nullopt when it did not say.
std::optional<absl::Duration> RetryDelayOf(const absl::Status& status);

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_STATUS_DETAILS_H_
