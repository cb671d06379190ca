// A CompressCache call of the wire becomes the engine's job: the one door of untrusted input.
#ifndef KVERN_SERVER_RPC_COMPRESS_FROM_PROTO_H_
#define KVERN_SERVER_RPC_COMPRESS_FROM_PROTO_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvern/v1/compression.pb.h"
#include "server/engine/compress_job.h"
#include "server/rpc/sequence_from_proto.h"

namespace kvern::rpc {

// The job but for peer, hash, deadline and cancellation, which are the call's and not the
// message's. Inline bytes are not copied: the job shares the request. Faults of the whole call are
// an error; faults of one sequence stand in its edge_status, their field path from `sequences[i]`
// on.
absl::StatusOr<engine::CompressJob> FromProto(
    const std::shared_ptr<const v1::CompressCacheRequest>& request, const Edge& edge);

// The model's id alone, so that the caller can look up its geometry first.
absl::StatusOr<std::string> ModelOf(const v1::CompressCacheRequest& request);

absl::StatusOr<std::vector<std::string>> FromProto(const v1::ReleaseSequencesRequest& request);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_COMPRESS_FROM_PROTO_H_
