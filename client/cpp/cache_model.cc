// RoPE comes from the file's live frequencies, else from theta and the scaling that metadata names.
#include "client/cpp/cache_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace kvern::client {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr size_t kDisplayNameBytes = 256;

// Too large for the wire is too large for every server: let it say so.
int32_t ClampToInt32(int64_t value) {
  return static_cast<int32_t>(std::min<int64_t>(value, std::numeric_limits<int32_t>::max()));
}

// Cut between characters, not inside one.
std::string DisplayName(const std::string& text) {
  size_t size = std::min(text.size(), kDisplayNameBytes);
  while (size > 0 && size < text.size() && (text[size] & 0xC0) == 0x80) --size;
  return text.substr(0, size);
}

absl::StatusOr<double> Positive(const nlohmann::json& scaling, const char* key) {
  const auto found = scaling.find(key);
  if (found == scaling.end() || !found->is_number() || !(found->get<double>() > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("rope_scaling: '", key, "' is missing or not a number above 0"));
  }
  return found->get<double>();
}

// Llama 3: long wavelengths are stretched by `factor`, short ones stay, those between blend.
absl::Status ScaleLlama3(const nlohmann::json& scaling, std::vector<double>* inv_freq) {
  KVERN_ASSIGN_OR_RETURN(const double factor, Positive(scaling, "factor"));
  KVERN_ASSIGN_OR_RETURN(const double low, Positive(scaling, "low_freq_factor"));
  KVERN_ASSIGN_OR_RETURN(const double high, Positive(scaling, "high_freq_factor"));
  KVERN_ASSIGN_OR_RETURN(const double context,
                         Positive(scaling, "original_max_position_embeddings"));
  if (high <= low) {
    return absl::InvalidArgumentError(absl::StrCat("rope_scaling: got high_freq_factor ", high,
                                                   ", want above low_freq_factor ", low));
  }
  for (double& frequency : *inv_freq) {
    const double wavelength = 2 * kPi / frequency;
    if (wavelength > context / low) {
      frequency /= factor;
    } else if (wavelength >= context / high) {
      const double smooth = (context / wavelength - low) / (high - low);
      frequency = (1 - smooth) * frequency / factor + smooth * frequency;
    }
  }
  return absl::OkStatus();
}

absl::Status Scale(const std::string& text, std::vector<double>* inv_freq) {
  if (text.empty()) return absl::OkStatus();
  const nlohmann::json scaling = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (scaling.is_null()) return absl::OkStatus();
  if (!scaling.is_object()) {
    return absl::InvalidArgumentError("rope_scaling: got text that is no JSON object");
  }
  auto type = scaling.find("rope_type");
  if (type == scaling.end()) type = scaling.find("type");  // the older name of the key
  const std::string name =
      type != scaling.end() && type->is_string() ? type->get<std::string>() : "default";
  if (name == "default") return absl::OkStatus();
  if (name == "llama3") return ScaleLlama3(scaling, inv_freq);
  if (name == "linear") {
    KVERN_ASSIGN_OR_RETURN(const double factor, Positive(scaling, "factor"));
    for (double& frequency : *inv_freq) frequency /= factor;
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("rope_scaling: got rope_type '", name,
                   "', want default, linear or llama3; for others put the model's live "
                   "frequencies into the file as 'inv_freq' F32 [head_dim / 2]"));
}

absl::StatusOr<double> MetadataFloat(const CacheFile& cache, const std::string& key,
                                     double fallback) {
  const std::string text = cache.Contents().Metadata(key);
  double value = fallback;
  if (!text.empty() && (!absl::SimpleAtod(text, &value) || !std::isfinite(value) || value < 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata '", key, "': got '", text, "', want a number"));
  }
  return value;
}

absl::Status FillRope(const CacheFile& cache, v1::ModelSpec* spec) {
  KVERN_ASSIGN_OR_RETURN(const double theta, MetadataFloat(cache, "rope_theta", 0));
  KVERN_ASSIGN_OR_RETURN(const double attention, MetadataFloat(cache, "rope_attention_scaling", 1));
  std::vector<float> inv_freq;
  if (const formats::TensorEntry* live = cache.Contents().Find("inv_freq"); live != nullptr) {
    KVERN_ASSIGN_OR_RETURN(inv_freq, formats::ToFloats("inv_freq", *live));
  } else if (theta > 0) {
    KVERN_ASSIGN_OR_RETURN(
        inv_freq, InverseFrequencies({.theta = theta,
                                      .rotary_dim = spec->head_dim(),
                                      .scaling = cache.Contents().Metadata("rope_scaling")}));
  }
  if (inv_freq.empty()) return absl::OkStatus();
  const std::string layout = cache.Contents().Metadata("rope_layout");
  if (!layout.empty() && layout != "half" && layout != "interleaved") {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata 'rope_layout': got '", layout, "', want half or interleaved"));
  }
  v1::Rope* rope = spec->mutable_rope();
  rope->set_layout(layout == "interleaved" ? v1::ROPE_LAYOUT_INTERLEAVED : v1::ROPE_LAYOUT_HALF);
  rope->set_rotary_dim(static_cast<int32_t>(2 * inv_freq.size()));
  rope->mutable_inv_freq()->Assign(inv_freq.begin(), inv_freq.end());
  rope->set_theta(theta);
  rope->set_attention_scaling(attention > 0 ? attention : 1);
  return absl::OkStatus();
}

// The display name counts: calibrations belong to weights, which geometry does not tell apart.
bool SameSpec(const v1::ModelSpec& a, const v1::ModelSpec& b) {
  const auto frequencies = [](const v1::ModelSpec& spec) {
    return std::vector<float>(spec.rope().inv_freq().begin(), spec.rope().inv_freq().end());
  };
  return DisplayName(a.display_name()) == DisplayName(b.display_name()) &&
         a.num_layers() == b.num_layers() && a.q_heads() == b.q_heads() &&
         a.kv_heads() == b.kv_heads() && a.head_dim() == b.head_dim() &&
         a.has_rope() == b.has_rope() && a.rope().layout() == b.rope().layout() &&
         a.rope().attention_scaling() == b.rope().attention_scaling() &&
         frequencies(a) == frequencies(b);
}

}  // namespace

absl::StatusOr<std::vector<float>> InverseFrequencies(const RopeConfig& config) {
  if (!(config.theta > 0) || config.rotary_dim < 2 || config.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("rope: got theta ", config.theta,
                                                   " and rotary_dim ", config.rotary_dim,
                                                   ", want theta above 0 and an even dim"));
  }
  std::vector<double> inv_freq(config.rotary_dim / 2);
  for (size_t band = 0; band < inv_freq.size(); ++band) {
    inv_freq[band] = std::pow(config.theta, -2.0 * static_cast<double>(band) / config.rotary_dim);
  }
  KVERN_RETURN_IF_ERROR(Scale(config.scaling, &inv_freq));
  return std::vector<float>(inv_freq.begin(), inv_freq.end());
}

absl::StatusOr<v1::Model> ModelOf(const CacheFile& cache) {
  const CacheShape& shape = cache.Shape();
  for (const auto& [key, want] :
       {std::pair("kv_heads", shape.kv_heads), std::pair("head_dim", shape.head_dim)}) {
    if (const int64_t got = cache.Number(key, want); got != want) {
      return absl::InvalidArgumentError(
          absl::StrCat("metadata '", key, "': got ", got, ", want ", want, " as the tensors have"));
    }
  }
  int64_t layers = shape.layers;
  for (const int32_t layer : cache.LayerIndices()) layers = std::max<int64_t>(layers, layer + 1);
  int64_t q_heads = shape.kv_heads;
  if (const formats::TensorEntry* window = cache.Contents().Find("q_window"); window != nullptr) {
    q_heads = window->shape[1];
  }
  v1::Model model;
  v1::ModelSpec* spec = model.mutable_spec();
  spec->set_num_layers(ClampToInt32(cache.Number("num_layers", layers)));
  spec->set_q_heads(ClampToInt32(cache.Number("q_heads", q_heads)));
  spec->set_kv_heads(ClampToInt32(shape.kv_heads));
  spec->set_head_dim(ClampToInt32(shape.head_dim));
  spec->set_display_name(DisplayName(cache.Contents().Metadata("model")));
  KVERN_RETURN_IF_ERROR(FillRope(cache, spec));
  return model;
}

absl::StatusOr<v1::Model> FindOrRegisterModel(const Client& client, const v1::Model& described) {
  KVERN_ASSIGN_OR_RETURN(const v1::ListModelsResponse known, client.ListModels());
  const v1::Model* best = nullptr;
  for (const v1::Model& model : known.models()) {
    const bool better = best == nullptr || model.calibrations_size() > best->calibrations_size();
    if (better && SameSpec(model.spec(), described.spec())) best = &model;
  }
  if (best != nullptr) return *best;
  return client.RegisterModel(described);
}

}  // namespace kvern::client
