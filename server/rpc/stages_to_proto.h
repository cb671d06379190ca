// The registered stages and shipped presets, for ListStages.
#ifndef KVERN_SERVER_RPC_STAGES_TO_PROTO_H_
#define KVERN_SERVER_RPC_STAGES_TO_PROTO_H_

#include "kvern/v1/server.pb.h"

namespace kvern::rpc {

void StagesToProto(v1::ListStagesResponse* response);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_STAGES_TO_PROTO_H_
