// Headers of the store's streams.
#ifndef KVERN_SERVER_RPC_STORE_FROM_PROTO_H_
#define KVERN_SERVER_RPC_STORE_FROM_PROTO_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvern/v1/store.pb.h"
#include "server/memory/limits.h"
#include "server/memory/store.h"
#include "server/pipeline/model.h"

namespace kvern::rpc {

// The model's id alone, so that the caller can look up its geometry first.
absl::StatusOr<std::string> ModelOf(const v1::StoredSequence& header);
// Positions and layers are filled in where the header leaves them out.
absl::StatusOr<memory::StoredInfo> FromProto(const v1::StoredSequence& header,
                                             const pipeline::ModelSpec& model,
                                             const Limits& limits);

struct Append {
  std::string id;
  uint64_t epoch = 0;
  int64_t tokens = 0;
  std::vector<int32_t> positions;  // empty: from the logical tokens on
};
absl::StatusOr<Append> FromProto(const v1::AppendHeader& header, const Limits& limits);

// What the sequence will be with the new tokens. Errors: Aborted/EPOCH_MISMATCH;
// FailedPrecondition/SEQUENCE_PACKED; InvalidArgument.
absl::StatusOr<memory::StoredInfo> AfterAppend(const memory::StoredSequence& before,
                                               const Append& append, const Limits& limits);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_STORE_FROM_PROTO_H_
