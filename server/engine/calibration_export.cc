// A file speaks of its model in full, so that --models can register it from the file alone.
#include "server/engine/calibration_export.h"

#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "formats/safetensors.h"
#include "kernels/base/error_reason.h"
#include "server/engine/calibration_file.h"

namespace kvern::engine {
namespace {

void AddTensor(const char* name, const std::vector<float>& values, std::vector<int64_t> shape,
               formats::Safetensors* file) {
  file->tensors[name] = {"F32", std::move(shape), std::as_bytes(std::span(values))};
}

formats::Safetensors FileOf(const RegisteredModel& model, int64_t tokens,
                            const std::string& format) {
  const pipeline::ModelSpec& spec = model.spec;
  formats::Safetensors file;
  file.metadata = {
      {"format", format},
      {"model", spec.display_name.empty() ? model.id : spec.display_name},
      {"num_layers", absl::StrCat(spec.num_layers)},
      {"q_heads", absl::StrCat(spec.q_heads)},
      {"kv_heads", absl::StrCat(spec.kv_heads)},
      {"head_dim", absl::StrCat(spec.head_dim)},
      {"rope_layout", spec.rope.layout == RopeLayout::kInterleaved ? "interleaved" : "half"},
      {"rope_attention_scaling", absl::StrFormat("%.17g", spec.rope.attention_scaling)},
      {"observed_tokens", absl::StrCat(tokens)}};
  if (spec.rope.Bands() > 0) {
    AddTensor("inv_freq", spec.rope.inv_freq, {spec.rope.Bands()}, &file);
  }
  return file;
}

}  // namespace

absl::StatusOr<std::string> ExportCalibration(const RegisteredModel& model,
                                              const ObservedQueries::Snapshot& observed,
                                              const std::string& format) {
  formats::Safetensors file = FileOf(model, observed.LeastTokens(), format);
  if (format == kCentresFormat) {
    const pipeline::QueryCentres& centres = *observed.centres;
    const std::vector<int64_t> shape = {centres.num_layers, centres.q_heads, centres.bands};
    AddTensor("q_mean_re", centres.mean_re, shape, &file);
    AddTensor("q_mean_im", centres.mean_im, shape, &file);
    AddTensor("q_abs_mean", centres.abs_mean, shape, &file);
  } else if (format == kMomentsFormat) {
    const pipeline::QueryMoments& moments = *observed.moments;
    std::vector<int64_t> shape = {moments.num_layers, moments.q_heads, moments.head_dim};
    AddTensor("q_mean", moments.mean, shape, &file);
    shape.push_back(moments.head_dim);
    AddTensor("q_cov", moments.cov, shape, &file);
  } else {
    return WithField(absl::InvalidArgumentError(absl::StrCat(
                         "format: got another, want ", kCentresFormat, " or ", kMomentsFormat)),
                     "format");
  }
  return formats::WriteSafetensors(file);
}

}  // namespace kvern::engine
