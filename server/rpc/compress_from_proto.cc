// Whole-call faults end the call; one sequence's faults end only that sequence.
#include "server/rpc/compress_from_proto.h"

#include <utility>
#include <variant>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/policy_from_proto.h"

namespace kvern::rpc {
namespace {

constexpr int64_t kMaxRequestIdBytes = 128;
constexpr int64_t kMaxReleasedIds = 4096;
constexpr int64_t kMaxMaskPaths = 64;

absl::StatusOr<engine::ResponseFields> FromProto(const google::protobuf::FieldMask& mask) {
  const FieldPath paths = FieldPath("response_mask");
  KVERN_RETURN_IF_ERROR(CheckCount(paths, mask.paths_size(), kMaxMaskPaths, "paths"));
  engine::ResponseFields fields;
  fields.by_default = mask.paths_size() == 0;
  for (int i = 0; i < mask.paths_size(); ++i) {
    const std::string& name = mask.paths(i);
    if (name == "kept") {
      fields.kept = true;
    } else if (name == "positions") {
      fields.positions = true;
    } else if (name == "scores") {
      fields.scores = true;
    } else if (name == "k") {
      fields.k = true;
    } else if (name == "v") {
      fields.v = true;
    } else if (name == "packed") {
      fields.packed = true;
    } else {
      return BadField(paths.At(i), absl::StrCat("got ", Quoted(name), ", want kept, positions, ",
                                                "scores, k, v or packed"));
    }
  }
  return fields;
}

absl::Status CheckIds(const v1::CompressCacheRequest& request, const FieldPath& sequences) {
  absl::flat_hash_set<absl::string_view> ids;
  for (int i = 0; i < request.sequences_size(); ++i) {
    const FieldPath at = sequences.At(i);
    const std::string& id = request.sequences(i).sequence_id();
    KVERN_RETURN_IF_ERROR(CheckOpaqueId(id, at.Child("sequence_id")));
    if (!ids.insert(id).second) {
      return BadField(at.Child("sequence_id"),
                      "got the id of an earlier sequence, want one of its own");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckInlineBytes(const v1::CompressCacheRequest& request, const Limits& limits,
                              const FieldPath& sequences) {
  // Sums of sizes in memory: they cannot overflow.
  int64_t bytes = 0;
  for (const v1::SequenceRequest& sequence : request.sequences()) {
    bytes += static_cast<int64_t>(sequence.inline_().k().data().size()) +
             static_cast<int64_t>(sequence.inline_().v().data().size());
  }
  if (bytes <= limits.inline_bytes) return absl::OkStatus();
  return BadField(sequences, absl::StrCat("got ", bytes, " inline bytes, want at most ",
                                          limits.inline_bytes, "; PutSequence takes larger ones"));
}

int64_t SideBytes(const pipeline::SideTensors& side) {
  return static_cast<int64_t>(
      (side.q_window.size() + side.attention_mass.size() + side.external_scores.size()) *
      sizeof(float));
}

}  // namespace

absl::StatusOr<std::string> ModelOf(const v1::CompressCacheRequest& request) {
  return ParseName(request.model(), Collection::kModels, FieldPath("model"));
}

absl::StatusOr<engine::CompressJob> FromProto(
    const std::shared_ptr<const v1::CompressCacheRequest>& request, const Edge& edge) {
  const Limits& limits = edge.limits;
  engine::CompressJob job;
  KVERN_RETURN_IF_ERROR(CheckCount(FieldPath("request_id"),
                                   static_cast<int64_t>(request->request_id().size()),
                                   kMaxRequestIdBytes, "bytes"));
  job.request_id = request->request_id();
  KVERN_ASSIGN_OR_RETURN(job.model, ModelOf(*request));
  KVERN_ASSIGN_OR_RETURN(job.policy, FromProto(request->policy(), limits, FieldPath("policy")));
  KVERN_ASSIGN_OR_RETURN(job.fields, FromProto(request->response_mask()));
  job.validate_only = request->validate_only();

  const FieldPath sequences("sequences");
  KVERN_RETURN_IF_ERROR(
      CheckRange(sequences, request->sequences_size(), 1, limits.sequences_per_call));
  KVERN_RETURN_IF_ERROR(CheckIds(*request, sequences));
  KVERN_RETURN_IF_ERROR(CheckInlineBytes(*request, limits, sequences));
  job.payload_bytes = static_cast<int64_t>(request->ByteSizeLong());
  job.sequences.resize(request->sequences_size());
  for (int i = 0; i < request->sequences_size(); ++i) {
    engine::SequenceJob& sequence = job.sequences[i];
    sequence.sequence_id = request->sequences(i).sequence_id();
    sequence.edge_status = FromProto(request->sequences(i), edge, sequences.At(i), &sequence);
    if (auto* source = std::get_if<engine::InlineSource>(&sequence.source)) source->owner = request;
    job.payload_bytes += SideBytes(sequence.side);
  }
  return job;
}

absl::StatusOr<std::vector<std::string>> FromProto(const v1::ReleaseSequencesRequest& request) {
  const FieldPath ids("sequence_ids");
  KVERN_RETURN_IF_ERROR(CheckCount(ids, request.sequence_ids_size(), kMaxReleasedIds, "ids"));
  for (int i = 0; i < request.sequence_ids_size(); ++i) {
    KVERN_RETURN_IF_ERROR(CheckOpaqueId(request.sequence_ids(i), ids.At(i)));
  }
  return std::vector<std::string>(request.sequence_ids().begin(), request.sequence_ids().end());
}

}  // namespace kvern::rpc
