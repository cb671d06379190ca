// Side tensors: optional inputs of scorers, copied out as f32. NaN and infinities pass: scorers
// rank them last and count them.
#ifndef KVERN_SERVER_RPC_SIDE_FROM_PROTO_H_
#define KVERN_SERVER_RPC_SIDE_FROM_PROTO_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "kvern/v1/compression.pb.h"
#include "server/memory/limits.h"
#include "server/pipeline/model.h"
#include "server/pipeline/sequence_input.h"
#include "server/rpc/field_path.h"

namespace kvern::rpc {

// What the tensors must agree with; -1: not known here, the engine checks.
struct SideRule {
  const Limits& limits;
  const pipeline::ModelSpec* model = nullptr;
  int64_t layers = -1;
  int64_t tokens = -1;
};

struct Side {
  pipeline::SideTensors tensors;
  int64_t layers = 0;  // of all tensors; 0: none sent
};

absl::StatusOr<Side> FromProto(const v1::SideTensors& side, const SideRule& rule,
                               const FieldPath& path);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_SIDE_FROM_PROTO_H_
