// What gRPC would refuse to send is refused by us, who can say why.
#ifndef KVERN_SERVER_RPC_RESPONSE_LIMIT_H_
#define KVERN_SERVER_RPC_RESPONSE_LIMIT_H_

#include <google/protobuf/message_lite.h>

#include "absl/status/status.h"
#include "server/memory/limits.h"

namespace kvern::rpc {

// Errors: ResourceExhausted/RESPONSE_TOO_LARGE above max_response_bytes.
absl::Status CheckSendable(const google::protobuf::MessageLite& response, const Limits& limits);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_RESPONSE_LIMIT_H_
