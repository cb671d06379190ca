// Each tensor is checked against the source, the model and its siblings before it is copied.
#include "server/rpc/side_from_proto.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/tensor_from_proto.h"

namespace kvern::rpc {
namespace {

struct Axis {
  int index;
  int64_t want;  // -1: anything
  const char* what;
};

absl::Status CheckAxis(const v1::Tensor& tensor, const Axis& axis, const FieldPath& path) {
  const int64_t got = tensor.shape(axis.index);
  if (axis.want < 0 || got == axis.want) return absl::OkStatus();
  const FieldPath shape = path.Child("shape");
  return BadField(shape.At(axis.index),
                  absl::StrCat("got ", got, " ", axis.what, ", want ", axis.want));
}

// Layers of the tensors so far; the first one sets them.
absl::Status AgreeOnLayers(const v1::Tensor& tensor, const FieldPath& path, int64_t* layers) {
  if (*layers < 0) *layers = tensor.shape(0);
  return CheckAxis(tensor, {0, *layers, "layers"}, path);
}

absl::StatusOr<std::vector<float>> QueryWindow(const v1::Tensor& tensor, const SideRule& rule,
                                               const FieldPath& path) {
  const Limits& limits = rule.limits;
  const int64_t q_heads = rule.model == nullptr ? -1 : rule.model->q_heads;
  const int64_t head_dim = rule.model == nullptr ? -1 : rule.model->head_dim;
  // Without the model, q_heads has no limit of its own; the data's size bounds it.
  const TensorRule bounds{
      {limits.layers, int64_t{1} << 20, limits.tokens_per_sequence, limits.head_dim},
      "[layers, q_heads, window, head_dim]"};
  KVERN_ASSIGN_OR_RETURN(const DType dtype, CheckTensor(tensor, bounds, path));
  KVERN_RETURN_IF_ERROR(CheckAxis(tensor, {1, q_heads, "q_heads"}, path));
  KVERN_RETURN_IF_ERROR(CheckAxis(tensor, {3, head_dim, "head_dim"}, path));
  return ToFloats(tensor, dtype);
}

absl::StatusOr<std::vector<float>> PerToken(const v1::Tensor& tensor, const SideRule& rule,
                                            const FieldPath& path) {
  const Limits& limits = rule.limits;
  const int64_t kv_heads = rule.model == nullptr ? -1 : rule.model->kv_heads;
  const TensorRule bounds{{limits.layers, limits.kv_heads, limits.tokens_per_sequence},
                          "[layers, kv_heads, tokens]"};
  KVERN_ASSIGN_OR_RETURN(const DType dtype, CheckTensor(tensor, bounds, path));
  if (dtype != DType::kF32) {
    return BadField(path.Child("dtype"), absl::StrCat("got ", Name(dtype), ", want f32"));
  }
  KVERN_RETURN_IF_ERROR(CheckAxis(tensor, {1, kv_heads, "kv_heads"}, path));
  KVERN_RETURN_IF_ERROR(CheckAxis(tensor, {2, rule.tokens, "tokens"}, path));
  return ToFloats(tensor, dtype);
}

}  // namespace

absl::StatusOr<Side> FromProto(const v1::SideTensors& side, const SideRule& rule,
                               const FieldPath& path) {
  Side out;
  int64_t layers = rule.layers;
  if (side.has_q_window()) {
    const FieldPath at = path.Child("q_window");
    KVERN_ASSIGN_OR_RETURN(out.tensors.q_window, QueryWindow(side.q_window(), rule, at));
    KVERN_RETURN_IF_ERROR(AgreeOnLayers(side.q_window(), at, &layers));
    out.tensors.window = side.q_window().shape(2);
    if (rule.tokens >= 0 && out.tensors.window > rule.tokens) {
      return BadField(at.Child("shape"),
                      absl::StrCat("got a window of ", out.tensors.window, ", want at most the ",
                                   rule.tokens, " tokens"));
    }
  }
  if (side.has_attention_mass()) {
    const FieldPath at = path.Child("attention_mass");
    KVERN_ASSIGN_OR_RETURN(out.tensors.attention_mass, PerToken(side.attention_mass(), rule, at));
    KVERN_RETURN_IF_ERROR(AgreeOnLayers(side.attention_mass(), at, &layers));
  }
  if (side.has_external_scores()) {
    const FieldPath at = path.Child("external_scores");
    KVERN_ASSIGN_OR_RETURN(out.tensors.external_scores, PerToken(side.external_scores(), rule, at));
    KVERN_RETURN_IF_ERROR(AgreeOnLayers(side.external_scores(), at, &layers));
  }
  const bool any = side.has_q_window() || side.has_attention_mass() || side.has_external_scores();
  out.layers = any ? layers : 0;
  return out;
}

}  // namespace kvern::rpc
