// Everything a scorer later relies on is checked here, once, while the bytes are still strangers.
#include "server/engine/calibration_file.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "formats/safetensors.h"
#include "kernels/base/status_macros.h"

namespace kvern::engine {
namespace {

using formats::Safetensors;
using formats::TensorEntry;

// Writers round mean and mean of |.| apart.
constexpr double kRoundingSlack = 1e-6;

absl::Status Bad(const std::string& tensor, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("calibration: tensor ", tensor, ": ", what));
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Values of a tensor of that shape, all finite.
absl::StatusOr<std::vector<float>> Read(const Safetensors& file, const std::string& name,
                                        const std::vector<int64_t>& shape) {
  const TensorEntry* tensor = file.Find(name);
  if (tensor == nullptr) return Bad(name, absl::StrCat("got none, want ", ShapeText(shape)));
  if (tensor->shape != shape) {
    return Bad(name,
               absl::StrCat("got shape ", ShapeText(tensor->shape), ", want ", ShapeText(shape)));
  }
  KVERN_ASSIGN_OR_RETURN(std::vector<float> values, formats::ToFloats(name, *tensor));
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      return Bad(name, absl::StrCat("got a value that is not finite at ", i, ", want finite ones"));
    }
  }
  return values;
}

// Extents of the tensor that leads a format, inside the limits: [layers, q_heads, dims].
absl::StatusOr<std::vector<int64_t>> LeadShape(const Safetensors& file, const std::string& name,
                                               const Limits& limits) {
  const TensorEntry* tensor = file.Find(name);
  if (tensor == nullptr) return Bad(name, "got none, want [num_layers, q_heads, dims]");
  const std::vector<int64_t>& shape = tensor->shape;
  // Query heads are at least kv_heads; models share up to tens of them per kv_head.
  const int64_t max_q_heads = 64 * limits.kv_heads;
  const bool fits = shape.size() == 3 && shape[0] >= 1 && shape[0] <= limits.layers &&
                    shape[1] >= 1 && shape[1] <= max_q_heads && shape[2] >= 1 &&
                    shape[2] <= limits.head_dim;
  if (!fits) {
    return Bad(name, absl::StrCat("got shape ", ShapeText(shape), ", want [1..", limits.layers,
                                  ", 1..", max_q_heads, ", 1..", limits.head_dim, "]"));
  }
  return shape;
}

absl::Status CheckMagnitudes(const pipeline::QueryCentres& centres) {
  for (size_t i = 0; i < centres.abs_mean.size(); ++i) {
    const double mean = std::hypot(double{centres.mean_re[i]}, double{centres.mean_im[i]});
    if (centres.abs_mean[i] < mean * (1 - kRoundingSlack)) {
      return Bad("q_abs_mean", absl::StrCat("got ", centres.abs_mean[i], " at ", i,
                                            ", want at least |q_mean| = ", mean));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<CalibrationArtifact> ParseCentres(const Safetensors& file, const Limits& limits) {
  KVERN_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, LeadShape(file, "q_mean_re", limits));
  auto centres = std::make_shared<pipeline::QueryCentres>();
  centres->num_layers = static_cast<int32_t>(shape[0]);
  centres->q_heads = static_cast<int32_t>(shape[1]);
  centres->bands = static_cast<int32_t>(shape[2]);
  KVERN_ASSIGN_OR_RETURN(centres->mean_re, Read(file, "q_mean_re", shape));
  KVERN_ASSIGN_OR_RETURN(centres->mean_im, Read(file, "q_mean_im", shape));
  KVERN_ASSIGN_OR_RETURN(centres->abs_mean, Read(file, "q_abs_mean", shape));
  KVERN_RETURN_IF_ERROR(CheckMagnitudes(*centres));
  if (file.Find("layer_sensitivity") != nullptr) {
    KVERN_ASSIGN_OR_RETURN(centres->layer_sensitivity, Read(file, "layer_sensitivity", {shape[0]}));
    for (const float value : centres->layer_sensitivity) {
      if (value < 0) return Bad("layer_sensitivity", absl::StrCat("got ", value, ", want >= 0"));
    }
  }
  CalibrationArtifact artifact;
  artifact.size_bytes = static_cast<int64_t>(
      (3 * centres->mean_re.size() + centres->layer_sensitivity.size()) * sizeof(float));
  artifact.centres = std::move(centres);
  return artifact;
}

absl::Status CheckVariances(const pipeline::QueryMoments& moments) {
  const int64_t dims = moments.head_dim;
  const int64_t rows = int64_t{moments.num_layers} * moments.q_heads * dims;
  for (int64_t row = 0; row < rows; ++row) {
    const float variance = moments.cov[row * dims + row % dims];
    if (variance < 0) {
      return Bad("q_cov", absl::StrCat("got variance ", variance, " in row ", row, ", want >= 0"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<CalibrationArtifact> ParseMoments(const Safetensors& file, const Limits& limits) {
  KVERN_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, LeadShape(file, "q_mean", limits));
  auto moments = std::make_shared<pipeline::QueryMoments>();
  moments->num_layers = static_cast<int32_t>(shape[0]);
  moments->q_heads = static_cast<int32_t>(shape[1]);
  moments->head_dim = static_cast<int32_t>(shape[2]);
  KVERN_ASSIGN_OR_RETURN(moments->mean, Read(file, "q_mean", shape));
  KVERN_ASSIGN_OR_RETURN(moments->cov,
                         Read(file, "q_cov", {shape[0], shape[1], shape[2], shape[2]}));
  KVERN_RETURN_IF_ERROR(CheckVariances(*moments));
  CalibrationArtifact artifact;
  artifact.size_bytes =
      static_cast<int64_t>((moments->mean.size() + moments->cov.size()) * sizeof(float));
  artifact.moments = std::move(moments);
  return artifact;
}

}  // namespace

absl::StatusOr<CalibrationArtifact> ParseCalibration(std::span<const std::byte> file,
                                                     const Limits& limits) {
  KVERN_ASSIGN_OR_RETURN(const Safetensors contents, formats::ParseSafetensors(file));
  const std::string format = contents.Metadata("format");
  if (format != kCentresFormat && format != kMomentsFormat) {
    // The text is the file's own and may be anything, so it is not echoed.
    return absl::InvalidArgumentError(absl::StrCat("calibration: metadata format: got another, ",
                                                   "want ", kCentresFormat, " or ",
                                                   kMomentsFormat));
  }
  auto artifact =
      format == kCentresFormat ? ParseCentres(contents, limits) : ParseMoments(contents, limits);
  if (artifact.ok()) artifact->format = format;
  return artifact;
}

}  // namespace kvern::engine
