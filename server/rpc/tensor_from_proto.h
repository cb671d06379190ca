// Tensors, element types, layer lists and positions: everything whose size a client claims.
#ifndef KVERN_SERVER_RPC_TENSOR_FROM_PROTO_H_
#define KVERN_SERVER_RPC_TENSOR_FROM_PROTO_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/dtype.h"
#include "kvern/v1/types.pb.h"
#include "server/memory/limits.h"
#include "server/rpc/field_path.h"

namespace kvern::rpc {

absl::StatusOr<DType> FromProto(v1::DType dtype, const FieldPath& path);

// Rank, dtype and size agree: data holds exactly the product of the extents. Each extent is bounded
// by its axis, so that a zero elsewhere hides no absurd one.
struct TensorRule {
  std::vector<int64_t> most;  // one bound per axis
  const char* axes;           // "[layers, kv_heads, tokens]", for messages
};
absl::StatusOr<DType> CheckTensor(const v1::Tensor& tensor, const TensorRule& rule,
                                  const FieldPath& path);

// The elements as f32; call after CheckTensor.
std::vector<float> ToFloats(const v1::Tensor& tensor, DType dtype);

// Ascending, unique, inside 0..num_layers-1.
absl::Status CheckLayerIndices(const google::protobuf::RepeatedField<int32_t>& layers,
                               int64_t num_layers, const FieldPath& path);

// What is known of the rows that positions describe; -1: not known here, the engine checks.
struct PositionRule {
  int64_t tokens = -1;
  int64_t rows = -1;  // layers x kv_heads
  int64_t below = 0;  // positions are below it; 0: any
};
// Each row ascends strictly from 0; -1 only fills the end of a per-head row.
absl::Status CheckPositions(const v1::Positions& positions, const PositionRule& rule,
                            const FieldPath& path);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_TENSOR_FROM_PROTO_H_
