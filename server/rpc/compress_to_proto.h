// The engine's answer becomes CompressCacheResponse.
#ifndef KVERN_SERVER_RPC_COMPRESS_TO_PROTO_H_
#define KVERN_SERVER_RPC_COMPRESS_TO_PROTO_H_

#include "kvern/v1/compression.pb.h"
#include "server/engine/compress_job.h"
#include "server/engine/rpc_events.h"

namespace kvern::rpc {

void ToProto(const engine::CompressResult& result, v1::CompressCacheResponse* response);
v1::ShapeClass ToProto(pipeline::ShapeClass shape_class);
v1::DType ToProto(DType dtype);

engine::CompressSummary Summarize(const engine::CompressResult& result);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_COMPRESS_TO_PROTO_H_
