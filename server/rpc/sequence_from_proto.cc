// Everything that one sequence claims is checked against itself, the model and the limits; what
// only the pool or the store can know is left to the engine.
#include "server/rpc/sequence_from_proto.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/name_from_proto.h"
#include "server/rpc/policy_from_proto.h"
#include "server/rpc/side_from_proto.h"
#include "server/rpc/tensor_from_proto.h"

namespace kvern::rpc {
namespace {

constexpr int64_t kMaxProtectedRanges = 1024;
constexpr int64_t kMaxPosition = std::numeric_limits<int32_t>::max();

int64_t NumLayers(const Edge& edge) {
  return edge.model == nullptr ? edge.limits.layers : edge.model->num_layers;
}

absl::StatusOr<engine::PagedSource> FromProto(const v1::PagedSource& paged, const Edge& edge,
                                              const FieldPath& path) {
  const Limits& limits = edge.limits;
  engine::PagedSource source;
  KVERN_ASSIGN_OR_RETURN(source.pool,
                         ParseName(paged.pool(), Collection::kPools, path.Child("pool")));
  KVERN_RETURN_IF_ERROR(
      CheckRange(path.Child("num_tokens"), paged.num_tokens(), 0, limits.tokens_per_sequence));
  KVERN_RETURN_IF_ERROR(CheckCount(path.Child("block_ids"), paged.block_ids_size(),
                                   limits.blocks_per_table, "block ids"));
  KVERN_RETURN_IF_ERROR(CheckCount(path.Child("destination_block_ids"),
                                   paged.destination_block_ids_size(), limits.blocks_per_table,
                                   "block ids"));
  const FieldPath lengths = path.Child("lengths");
  KVERN_RETURN_IF_ERROR(
      CheckCount(lengths, paged.lengths_size(), limits.layers * limits.kv_heads, "lengths"));
  for (int row = 0; row < paged.lengths_size(); ++row) {
    KVERN_RETURN_IF_ERROR(CheckRange(lengths.At(row), paged.lengths(row), 0, paged.num_tokens()));
  }
  source.num_tokens = paged.num_tokens();
  source.block_ids.assign(paged.block_ids().begin(), paged.block_ids().end());
  source.lengths.assign(paged.lengths().begin(), paged.lengths().end());
  source.destination_block_ids.assign(paged.destination_block_ids().begin(),
                                      paged.destination_block_ids().end());
  return source;
}

absl::Status CheckInlineGeometry(const v1::InlineSource& source, const Edge& edge,
                                 const FieldPath& path) {
  const FieldPath shape = path.Child("shape");
  const int64_t layers = source.k().shape(0);
  if (source.layer_indices_size() > 0 && layers != source.layer_indices_size()) {
    return BadField(shape, absl::StrCat("got ", layers, " layers, want one per layer index, ",
                                        source.layer_indices_size()));
  }
  if (edge.model == nullptr) return absl::OkStatus();
  const pipeline::ModelSpec& model = *edge.model;
  if (source.layer_indices_size() == 0 && layers != model.num_layers) {
    return BadField(shape, absl::StrCat("got ", layers, " layers, want the model's ",
                                        model.num_layers, " or layer_indices"));
  }
  if (source.k().shape(1) != model.kv_heads || source.k().shape(3) != model.head_dim) {
    return BadField(shape, absl::StrCat("got ", source.k().shape(1), " kv_heads and head_dim ",
                                        source.k().shape(3), ", want the model's ", model.kv_heads,
                                        " and ", model.head_dim));
  }
  return absl::OkStatus();
}

absl::StatusOr<engine::InlineSource> FromProto(const v1::InlineSource& inline_source,
                                               const Edge& edge, const FieldPath& path) {
  const Limits& limits = edge.limits;
  engine::InlineSource source;
  const FieldPath k = path.Child("k");
  const FieldPath v = path.Child("v");
  KVERN_RETURN_IF_ERROR(CheckLayerIndices(inline_source.layer_indices(), NumLayers(edge),
                                          path.Child("layer_indices")));
  const TensorRule rule{
      {limits.layers, limits.kv_heads, limits.tokens_per_sequence, limits.head_dim},
      "[layers, kv_heads, tokens, head_dim]"};
  KVERN_ASSIGN_OR_RETURN(source.dtype, CheckTensor(inline_source.k(), rule, k));
  KVERN_ASSIGN_OR_RETURN(const DType v_dtype, CheckTensor(inline_source.v(), rule, v));
  if (v_dtype != source.dtype) {
    return BadField(v.Child("dtype"),
                    absl::StrCat("got ", Name(v_dtype), ", want k's ", Name(source.dtype)));
  }
  for (int axis = 0; axis < 4; ++axis) {
    if (inline_source.v().shape(axis) == inline_source.k().shape(axis)) continue;
    return BadField(v.Child("shape"),
                    absl::StrCat("got ", inline_source.v().shape(axis), " on axis ", axis,
                                 ", want k's ", inline_source.k().shape(axis)));
  }
  KVERN_RETURN_IF_ERROR(CheckInlineGeometry(inline_source, edge, k));
  source.layer_indices.assign(inline_source.layer_indices().begin(),
                              inline_source.layer_indices().end());
  source.layers = inline_source.k().shape(0);
  source.kv_heads = inline_source.k().shape(1);
  source.tokens = inline_source.k().shape(2);
  source.head_dim = inline_source.k().shape(3);
  source.k = reinterpret_cast<const std::byte*>(inline_source.k().data().data());
  source.v = reinterpret_cast<const std::byte*>(inline_source.v().data().data());
  return source;
}

// Sets the source; answers its physical tokens, -1 where only the store knows.
absl::StatusOr<int64_t> SetSource(const v1::SequenceRequest& request, const Edge& edge,
                                  const FieldPath& path, engine::SequenceJob* job) {
  switch (request.source_case()) {
    case v1::SequenceRequest::kPaged: {
      KVERN_ASSIGN_OR_RETURN(engine::PagedSource source,
                             FromProto(request.paged(), edge, path.Child("paged")));
      const int64_t tokens = source.num_tokens;
      job->source = std::move(source);
      return tokens;
    }
    case v1::SequenceRequest::kStored: {
      const FieldPath stored = path.Child("stored");
      KVERN_ASSIGN_OR_RETURN(
          std::string id,
          ParseName(request.stored().sequence(), Collection::kSequences, stored.Child("sequence")));
      job->source = engine::StoredSource{std::move(id)};
      return -1;
    }
    case v1::SequenceRequest::kInline: {
      KVERN_ASSIGN_OR_RETURN(engine::InlineSource source,
                             FromProto(request.inline_(), edge, path.Child("inline")));
      const int64_t tokens = source.tokens;
      job->source = std::move(source);
      return tokens;
    }
    case v1::SequenceRequest::SOURCE_NOT_SET:
      break;
  }
  return BadField(path.Child("source"), "got nothing, want paged, stored or inline");
}

absl::Status SetProtection(const v1::SequenceRequest& request, int64_t tokens,
                           const FieldPath& path, engine::SequenceJob* job) {
  const FieldPath ranges = path.Child("protected");
  KVERN_RETURN_IF_ERROR(
      CheckCount(ranges, request.protected__size(), kMaxProtectedRanges, "ranges"));
  for (int i = 0; i < request.protected__size(); ++i) {
    const v1::TokenRange& range = request.protected_(i);
    const FieldPath at = ranges.At(i);
    KVERN_RETURN_IF_ERROR(CheckRange(at.Child("end"), range.end(), 0, tokens));
    KVERN_RETURN_IF_ERROR(CheckRange(at.Child("begin"), range.begin(), 0, range.end()));
    job->protected_ranges.emplace_back(range.begin(), range.end());
  }
  const FieldPath prefix = path.Child("readonly_prefix_tokens");
  if (request.readonly_prefix_tokens() != 0 && !request.has_paged()) {
    return BadField(prefix, absl::StrCat("got ", request.readonly_prefix_tokens(),
                                         " without a paged source, want 0"));
  }
  KVERN_RETURN_IF_ERROR(CheckRange(prefix, request.readonly_prefix_tokens(), 0, tokens));
  job->readonly_prefix_tokens = request.readonly_prefix_tokens();
  return absl::OkStatus();
}

absl::Status SetPositions(const v1::SequenceRequest& request, const Edge& edge,
                          const FieldPath& path, engine::SequenceJob* job) {
  if (!request.has_positions() || request.positions().values().empty()) return absl::OkStatus();
  PositionRule rule{.tokens = -1, .rows = -1, .below = request.num_logical_tokens()};
  if (const auto* paged = std::get_if<engine::PagedSource>(&job->source)) {
    rule.tokens = paged->num_tokens;
  } else if (const auto* bytes = std::get_if<engine::InlineSource>(&job->source)) {
    rule.tokens = bytes->tokens;
    rule.rows = bytes->layers * bytes->kv_heads;
  }
  const FieldPath positions = path.Child("positions");
  const int64_t most =
      request.positions().per_head() ? kMaxPosition : edge.limits.tokens_per_sequence;
  KVERN_RETURN_IF_ERROR(
      CheckCount(positions.Child("values"), request.positions().values_size(), most, "positions"));
  KVERN_RETURN_IF_ERROR(CheckPositions(request.positions(), rule, positions));
  job->positions.assign(request.positions().values().begin(), request.positions().values().end());
  job->per_head_positions = request.positions().per_head();
  return absl::OkStatus();
}

absl::Status SetSide(const v1::SequenceRequest& request, const Edge& edge, const FieldPath& path,
                     engine::SequenceJob* job) {
  if (!request.has_side()) return absl::OkStatus();
  SideRule rule{.limits = edge.limits, .model = edge.model};
  if (const auto* bytes = std::get_if<engine::InlineSource>(&job->source)) {
    rule.layers = bytes->layers;
    rule.tokens = bytes->tokens;
  } else if (const auto* paged = std::get_if<engine::PagedSource>(&job->source)) {
    rule.tokens = paged->num_tokens;
  }
  KVERN_ASSIGN_OR_RETURN(Side side, FromProto(request.side(), rule, path.Child("side")));
  job->side = std::move(side.tensors);
  job->side_layers = side.layers;
  return absl::OkStatus();
}

}  // namespace

absl::Status FromProto(const v1::SequenceRequest& request, const Edge& edge, const FieldPath& path,
                       engine::SequenceJob* job) {
  job->epoch = request.epoch();
  KVERN_ASSIGN_OR_RETURN(const int64_t known_tokens, SetSource(request, edge, path, job));
  const int64_t least = request.num_logical_tokens() == 0 ? 0 : std::max<int64_t>(known_tokens, 0);
  KVERN_RETURN_IF_ERROR(CheckRange(path.Child("num_logical_tokens"), request.num_logical_tokens(),
                                   least, kMaxPosition));
  job->logical_tokens = request.num_logical_tokens();
  KVERN_RETURN_IF_ERROR(SetPositions(request, edge, path, job));
  const int64_t tokens = known_tokens < 0 ? edge.limits.tokens_per_sequence : known_tokens;
  KVERN_RETURN_IF_ERROR(SetProtection(request, tokens, path, job));
  KVERN_RETURN_IF_ERROR(SetSide(request, edge, path, job));
  if (request.has_policy()) {
    KVERN_ASSIGN_OR_RETURN(job->policy,
                           FromProto(request.policy(), edge.limits, path.Child("policy")));
  }
  return absl::OkStatus();
}

}  // namespace kvern::rpc
