// One sequence of a CompressCache call: its source, positions, protection and side tensors.
#ifndef KVERN_SERVER_RPC_SEQUENCE_FROM_PROTO_H_
#define KVERN_SERVER_RPC_SEQUENCE_FROM_PROTO_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kvern/v1/compression.pb.h"
#include "server/engine/compress_job.h"
#include "server/memory/limits.h"
#include "server/pipeline/model.h"
#include "server/rpc/field_path.h"

namespace kvern::rpc {

// What the edge knows beside the message. Borrowed.
struct Edge {
  const Limits& limits;
  const pipeline::ModelSpec* model = nullptr;  // null: geometry is left to the engine
};

// Fills `job` but for its id. Inline bytes stay in the request, which `owner` keeps alive.
// Errors: InvalidArgument with the field path; then `job` is not to be run.
absl::Status FromProto(const v1::SequenceRequest& request, const Edge& edge, const FieldPath& path,
                       engine::SequenceJob* job);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_SEQUENCE_FROM_PROTO_H_
