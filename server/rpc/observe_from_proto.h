// A message of ObserveQueries: queries of one model, turned back before RoPE.
#ifndef KVERN_SERVER_RPC_OBSERVE_FROM_PROTO_H_
#define KVERN_SERVER_RPC_OBSERVE_FROM_PROTO_H_

#include "absl/status/statusor.h"
#include "kvern/v1/model.pb.h"
#include "server/pipeline/model.h"
#include "server/pipeline/query_statistics.h"

namespace kvern::rpc {

// Errors: InvalidArgument (field path); FailedPrecondition/ROPE_UNKNOWN for queries after a RoPE
// that the model does not tell.
absl::StatusOr<pipeline::QueryBatch> FromProto(const v1::ObserveQueriesRequest& request,
                                               const pipeline::ModelSpec& model);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_OBSERVE_FROM_PROTO_H_
