// Planning is CompressCache without its answer's memory: what only makes sense there is refused.
#include "server/rpc/plan_from_proto.h"

#include <cstring>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/compress_from_proto.h"
#include "server/rpc/field_path.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/request_hash.h"

namespace kvern::rpc {
namespace {

constexpr int64_t kMaxRequestIdBytes = 128;

absl::Status CheckPlannable(const v1::CompressCacheRequest& request) {
  if (!request.request_id().empty()) {
    return BadField(FieldPath("request_id"), "got one in a plan, want it in ApplyCompression");
  }
  if (request.validate_only()) {
    return BadField(FieldPath("validate_only"), "got true in a plan, want CompressCache for that");
  }
  const FieldPath sequences("sequences");
  for (int at = 0; at < request.sequences_size(); ++at) {
    if (!request.sequences(at).has_inline_()) continue;
    const FieldPath sequence = sequences.At(at);
    return BadField(sequence.Child("inline"), "got bytes in a plan, want paged or stored");
  }
  return absl::OkStatus();
}

uint64_t HashOf(const v1::ApplyCompressionRequest& request) {
  uint64_t hash;
  std::memcpy(&hash, Sha256(request.SerializeAsString()).data(), sizeof(hash));
  return hash;
}

absl::StatusOr<std::vector<uint32_t>> Blocks(const google::protobuf::RepeatedField<uint32_t>& ids,
                                             const Limits& limits, const FieldPath& path) {
  KVERN_RETURN_IF_ERROR(CheckCount(path, ids.size(), limits.blocks_per_table, "blocks"));
  return std::vector<uint32_t>(ids.begin(), ids.end());
}

absl::StatusOr<engine::ApplyJob::Sequence> FromProto(const v1::ApplySequence& sequence,
                                                     const Limits& limits, const FieldPath& path) {
  engine::ApplyJob::Sequence out;
  KVERN_RETURN_IF_ERROR(CheckOpaqueId(sequence.sequence_id(), path.Child("sequence_id")));
  out.sequence_id = sequence.sequence_id();
  out.epoch = sequence.epoch();
  KVERN_RETURN_IF_ERROR(
      CheckRange(path.Child("num_tokens"), sequence.num_tokens(), 0, limits.tokens_per_sequence));
  out.num_tokens = sequence.num_tokens();
  KVERN_ASSIGN_OR_RETURN(out.appended_block_ids, Blocks(sequence.appended_block_ids(), limits,
                                                        path.Child("appended_block_ids")));
  KVERN_ASSIGN_OR_RETURN(out.destination_block_ids, Blocks(sequence.destination_block_ids(), limits,
                                                           path.Child("destination_block_ids")));
  return out;
}

}  // namespace

absl::StatusOr<PlanRequest> FromProto(const v1::PlanCompressionRequest& request, const Edge& edge) {
  KVERN_RETURN_IF_ERROR(CheckPlannable(request.compression()));
  const Limits& limits = edge.limits;
  KVERN_RETURN_IF_ERROR(
      CheckRange(FieldPath("ttl_seconds"), request.ttl_seconds(), 0, limits.plan_seconds));
  PlanRequest plan;
  // Only inline bytes are read where they lie, and there are none: the job outlives the message.
  KVERN_ASSIGN_OR_RETURN(plan.job,
                         FromProto(std::shared_ptr<const v1::CompressCacheRequest>(
                                       std::shared_ptr<const void>(), &request.compression()),
                                   edge));
  const int64_t seconds = request.ttl_seconds() == 0 ? limits.plan_seconds : request.ttl_seconds();
  plan.patience = absl::Seconds(seconds);
  return plan;
}

absl::StatusOr<engine::ApplyJob> FromProto(const v1::ApplyCompressionRequest& request,
                                           const Limits& limits) {
  engine::ApplyJob job;
  KVERN_RETURN_IF_ERROR(CheckCount(FieldPath("request_id"),
                                   static_cast<int64_t>(request.request_id().size()),
                                   kMaxRequestIdBytes, "bytes"));
  job.request_id = request.request_id();
  KVERN_ASSIGN_OR_RETURN(job.plan,
                         ParseName(request.plan(), Collection::kPlans, FieldPath("plan")));
  const FieldPath sequences("sequences");
  KVERN_RETURN_IF_ERROR(
      CheckRange(sequences, request.sequences_size(), 1, limits.sequences_per_call));
  for (int at = 0; at < request.sequences_size(); ++at) {
    KVERN_ASSIGN_OR_RETURN(job.sequences.emplace_back(),
                           FromProto(request.sequences(at), limits, sequences.At(at)));
  }
  if (!job.request_id.empty()) job.request_hash = HashOf(request);
  job.payload_bytes = static_cast<int64_t>(request.ByteSizeLong());
  return job;
}

}  // namespace kvern::rpc
