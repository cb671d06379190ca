// One query that is not a number would spoil the sums for ever, so every element is looked at.
#include "server/rpc/observe_from_proto.h"

#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/dense_upload.h"
#include "server/rpc/field_path.h"
#include "server/rpc/tensor_from_proto.h"

namespace kvern::rpc {
namespace {

// Its square, and a sum of squares, are far from the end of f32.
constexpr float kMostMagnitude = 1 << 30;

absl::Status CheckAxis(const v1::Tensor& queries, int axis, int64_t want, const FieldPath& path) {
  if (queries.shape(axis) == want) return absl::OkStatus();
  const FieldPath shape = path.Child("shape");
  return BadField(shape.At(axis), absl::StrCat("got ", queries.shape(axis), ", want ", want));
}

absl::StatusOr<std::vector<int32_t>> LayersOf(const v1::ObserveQueriesRequest& request,
                                              const pipeline::ModelSpec& model) {
  KVERN_RETURN_IF_ERROR(
      CheckLayerIndices(request.layer_indices(), model.num_layers, FieldPath("layer_indices")));
  std::vector<int32_t> layers(request.layer_indices().begin(), request.layer_indices().end());
  if (!layers.empty()) return layers;
  layers.resize(model.num_layers);
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

absl::StatusOr<DType> CheckQueries(const v1::Tensor& queries, int64_t layers,
                                   const pipeline::ModelSpec& model) {
  const FieldPath path("queries");
  KVERN_RETURN_IF_ERROR(CheckCount(path.Child("data"), static_cast<int64_t>(queries.data().size()),
                                   kMaxChunkBytes, "bytes"));
  const TensorRule bounds{{model.num_layers, model.q_heads, kMaxChunkBytes, model.head_dim},
                          "[layers, q_heads, tokens, head_dim]"};
  KVERN_ASSIGN_OR_RETURN(const DType dtype, CheckTensor(queries, bounds, path));
  KVERN_RETURN_IF_ERROR(CheckAxis(queries, 0, layers, path));
  KVERN_RETURN_IF_ERROR(CheckAxis(queries, 1, model.q_heads, path));
  KVERN_RETURN_IF_ERROR(CheckAxis(queries, 3, model.head_dim, path));
  const FieldPath shape = path.Child("shape");
  KVERN_RETURN_IF_ERROR(CheckRange(shape.At(2), queries.shape(2), 1, kMaxChunkBytes));
  return dtype;
}

absl::Status CheckElements(const std::vector<float>& elements) {
  for (size_t at = 0; at < elements.size(); ++at) {
    if (std::fabs(elements[at]) <= kMostMagnitude) continue;  // NaN fails too
    const FieldPath path("queries");
    return BadField(path.Child("data"),
                    absl::StrCat("got ", elements[at], " at element ", at,
                                 ", want finite ones of at most 2^30, before RoPE too"));
  }
  return absl::OkStatus();
}

absl::Status CheckPositions(const v1::ObserveQueriesRequest& request, int64_t want) {
  const FieldPath path("positions");
  if (request.positions_size() != want) {
    return BadField(path, absl::StrCat("got ", request.positions_size(), ", want ", want,
                                       want == 0 ? " for queries before RoPE" : ", one per token"));
  }
  for (int at = 0; at < request.positions_size(); ++at) {
    if (request.positions(at) >= 0) continue;
    return BadField(path.At(at), absl::StrCat("got ", request.positions(at), ", want 0 or more"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<pipeline::QueryBatch> FromProto(const v1::ObserveQueriesRequest& request,
                                               const pipeline::ModelSpec& model) {
  const bool rotated = request.form() == v1::QUERY_FORM_AFTER_ROPE;
  if (!rotated && request.form() != v1::QUERY_FORM_BEFORE_ROPE) {
    return BadField(FieldPath("form"), absl::StrCat("got ", static_cast<int>(request.form()),
                                                    ", want BEFORE_ROPE or AFTER_ROPE"));
  }
  if (rotated && model.rope.Bands() == 0) {
    return WithField(
        WithReason(absl::FailedPreconditionError("form: got AFTER_ROPE for a model whose RoPE is "
                                                 "unknown, want BEFORE_ROPE"),
                   "ROPE_UNKNOWN"),
        "form");
  }
  pipeline::QueryBatch batch;
  KVERN_ASSIGN_OR_RETURN(batch.layers, LayersOf(request, model));
  KVERN_ASSIGN_OR_RETURN(
      const DType dtype,
      CheckQueries(request.queries(), static_cast<int64_t>(batch.layers.size()), model));
  batch.tokens = request.queries().shape(2);
  KVERN_RETURN_IF_ERROR(CheckPositions(request, rotated ? batch.tokens : 0));
  batch.queries = ToFloats(request.queries(), dtype);
  KVERN_RETURN_IF_ERROR(CheckElements(batch.queries));
  if (rotated) {
    TurnBack(model, {request.positions().begin(), request.positions().end()}, &batch);
    KVERN_RETURN_IF_ERROR(CheckElements(batch.queries));  // a small attention_scaling divides
  }
  return batch;
}

}  // namespace kvern::rpc
