// Geometry is checked once, here; frequencies are made here, so that every backend reads the same.
#include "server/rpc/model_from_proto.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/rpc/name_from_proto.h"

namespace kvern::rpc {
namespace {

constexpr int64_t kMaxDisplayNameBytes = 256;
constexpr int64_t kMaxCalibrations = 16;
constexpr int64_t kMaxQueryHeads = int64_t{1} << 16;
constexpr int64_t kMinHeadDim = 8;

// theta^(-2f / rotary_dim), in double, rounded once.
std::vector<float> UnscaledFrequencies(double theta, int64_t rotary_dim) {
  std::vector<float> inv_freq(rotary_dim / 2);
  for (size_t band = 0; band < inv_freq.size(); ++band) {
    const double exponent = -2.0 * static_cast<double>(band) / static_cast<double>(rotary_dim);
    inv_freq[band] = static_cast<float>(std::pow(theta, exponent));
  }
  return inv_freq;
}

absl::Status CheckFrequencies(const v1::Rope& rope, int64_t rotary_dim, const FieldPath& path) {
  const FieldPath inv_freq = path.Child("inv_freq");
  if (int64_t{2} * rope.inv_freq_size() != rotary_dim) {
    return BadField(inv_freq, absl::StrCat("got ", rope.inv_freq_size(),
                                           " frequencies, want rotary_dim / 2, ", rotary_dim / 2));
  }
  for (int band = 0; band < rope.inv_freq_size(); ++band) {
    const float frequency = rope.inv_freq(band);
    if (std::isfinite(frequency) && frequency > 0) continue;
    return BadField(inv_freq.At(band),
                    absl::StrCat("got ", frequency, ", want a finite frequency above 0"));
  }
  return absl::OkStatus();
}

absl::Status SetLayout(const v1::Rope& rope, const FieldPath& path, pipeline::RopeSpec* out) {
  switch (rope.layout()) {
    case v1::ROPE_LAYOUT_UNSPECIFIED:
    case v1::ROPE_LAYOUT_HALF:
      out->layout = RopeLayout::kHalf;
      return absl::OkStatus();
    case v1::ROPE_LAYOUT_INTERLEAVED:
      out->layout = RopeLayout::kInterleaved;
      return absl::OkStatus();
    default:
      return BadField(path.Child("layout"), absl::StrCat("got ", static_cast<int>(rope.layout()),
                                                         ", want a declared value of the enum"));
  }
}

absl::StatusOr<pipeline::RopeSpec> FromProto(const v1::Rope& rope, int64_t head_dim,
                                             const FieldPath& path) {
  pipeline::RopeSpec out;
  KVERN_RETURN_IF_ERROR(SetLayout(rope, path, &out));
  if (!std::isfinite(rope.theta()) || rope.theta() < 0) {
    return BadField(path.Child("theta"),
                    absl::StrCat("got ", rope.theta(), ", want a finite base of 0 or more"));
  }
  if (!std::isfinite(rope.attention_scaling()) || rope.attention_scaling() < 0) {
    return BadField(path.Child("attention_scaling"),
                    absl::StrCat("got ", rope.attention_scaling(), ", want a finite factor"));
  }
  if (rope.attention_scaling() > 0) out.attention_scaling = rope.attention_scaling();

  const bool listed = rope.inv_freq_size() > 0;
  int64_t rotary_dim = rope.rotary_dim();
  if (rotary_dim == 0) rotary_dim = listed ? int64_t{2} * rope.inv_freq_size() : head_dim;
  const FieldPath rotary = path.Child("rotary_dim");
  KVERN_RETURN_IF_ERROR(CheckRange(rotary, rotary_dim, 2, head_dim));
  if (rotary_dim % 2 != 0) {
    return BadField(rotary, absl::StrCat("got ", rotary_dim, ", want an even number"));
  }
  if (listed) {
    KVERN_RETURN_IF_ERROR(CheckFrequencies(rope, rotary_dim, path));
    out.inv_freq.assign(rope.inv_freq().begin(), rope.inv_freq().end());
  } else if (rope.theta() > 0) {
    out.inv_freq = UnscaledFrequencies(rope.theta(), rotary_dim);
    for (const float frequency : out.inv_freq) {
      if (std::isfinite(frequency) && frequency > 0) continue;
      return BadField(path.Child("theta"),
                      absl::StrCat("got ", rope.theta(), ", want one whose frequencies fit f32"));
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<pipeline::ModelSpec> FromProto(const v1::ModelSpec& spec, const Limits& limits,
                                              const FieldPath& path) {
  KVERN_RETURN_IF_ERROR(CheckRange(path.Child("num_layers"), spec.num_layers(), 1, limits.layers));
  KVERN_RETURN_IF_ERROR(CheckRange(path.Child("kv_heads"), spec.kv_heads(), 1, limits.kv_heads));
  const FieldPath q_heads = path.Child("q_heads");
  KVERN_RETURN_IF_ERROR(CheckRange(q_heads, spec.q_heads(), spec.kv_heads(), kMaxQueryHeads));
  if (spec.q_heads() % spec.kv_heads() != 0) {
    return BadField(q_heads, absl::StrCat("got ", spec.q_heads(), ", want a multiple of kv_heads ",
                                          spec.kv_heads()));
  }
  const FieldPath head_dim = path.Child("head_dim");
  KVERN_RETURN_IF_ERROR(CheckRange(head_dim, spec.head_dim(), kMinHeadDim, limits.head_dim));
  if (spec.head_dim() % kMinHeadDim != 0) {
    return BadField(head_dim,
                    absl::StrCat("got ", spec.head_dim(), ", want a multiple of ", kMinHeadDim));
  }
  KVERN_RETURN_IF_ERROR(CheckCount(path.Child("display_name"),
                                   static_cast<int64_t>(spec.display_name().size()),
                                   kMaxDisplayNameBytes, "bytes"));
  pipeline::ModelSpec out;
  out.num_layers = spec.num_layers();
  out.q_heads = spec.q_heads();
  out.kv_heads = spec.kv_heads();
  out.head_dim = spec.head_dim();
  out.display_name = spec.display_name();
  if (spec.has_rope()) {
    KVERN_ASSIGN_OR_RETURN(out.rope, FromProto(spec.rope(), spec.head_dim(), path.Child("rope")));
  }
  return out;
}

absl::StatusOr<engine::RegisteredModel> FromProto(const v1::RegisterModelRequest& request,
                                                  const Limits& limits) {
  const FieldPath path("model");
  engine::RegisteredModel model;
  KVERN_ASSIGN_OR_RETURN(
      model.id, ParseOptionalName(request.model().name(), Collection::kModels, path.Child("name")));
  KVERN_ASSIGN_OR_RETURN(model.spec, FromProto(request.model().spec(), limits, path.Child("spec")));
  const FieldPath names = path.Child("calibrations");
  KVERN_RETURN_IF_ERROR(
      CheckCount(names, request.model().calibrations_size(), kMaxCalibrations, "calibrations"));
  for (int i = 0; i < request.model().calibrations_size(); ++i) {
    KVERN_ASSIGN_OR_RETURN(std::string sha256, ParseName(request.model().calibrations(i),
                                                         Collection::kCalibrations, names.At(i)));
    model.calibrations.push_back(std::move(sha256));
  }
  return model;
}

}  // namespace kvern::rpc
