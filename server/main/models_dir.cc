// Files of one model carry the same metadata; their artifacts meet under the spec it describes.
#include "server/main/models_dir.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "formats/safetensors.h"
#include "kernels/base/status_macros.h"

namespace kvern {
namespace {

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat("--models: ", path, ": ", status.message()));
}

absl::StatusOr<std::vector<std::string>> FilesOf(const std::string& directory) {
  std::vector<std::string> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    if (entry.path().extension() == ".safetensors") paths.push_back(entry.path().string());
  }
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat("--models: cannot list ", directory, ": ", error.message()));
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

absl::StatusOr<int32_t> Number(const formats::Safetensors& file, const std::string& key) {
  int32_t value = 0;
  const std::string text = file.Metadata(key);
  if (absl::SimpleAtoi(text, &value)) return value;
  return absl::InvalidArgumentError(
      absl::StrCat("metadata ", key, ": got \"", text, "\", want a whole number"));
}

absl::StatusOr<pipeline::ModelSpec> SpecOf(const formats::Safetensors& file) {
  pipeline::ModelSpec spec;
  KVERN_ASSIGN_OR_RETURN(spec.num_layers, Number(file, "num_layers"));
  KVERN_ASSIGN_OR_RETURN(spec.q_heads, Number(file, "q_heads"));
  KVERN_ASSIGN_OR_RETURN(spec.kv_heads, Number(file, "kv_heads"));
  KVERN_ASSIGN_OR_RETURN(spec.head_dim, Number(file, "head_dim"));
  spec.display_name = file.Metadata("model");
  if (file.Metadata("rope_layout") == "interleaved") spec.rope.layout = RopeLayout::kInterleaved;
  const std::string scaling = file.Metadata("rope_attention_scaling");
  if (!scaling.empty() && !absl::SimpleAtod(scaling, &spec.rope.attention_scaling)) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata rope_attention_scaling: got \"", scaling, "\", want a number"));
  }
  if (const formats::TensorEntry* inv_freq = file.Find("inv_freq")) {
    KVERN_ASSIGN_OR_RETURN(spec.rope.inv_freq, formats::ToFloats("inv_freq", *inv_freq));
  }
  return spec;
}

struct Loaded {
  pipeline::ModelSpec spec;
  std::string sha256;
};

absl::StatusOr<Loaded> LoadFile(const std::string& path, engine::ModelRegistry& registry) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(file), {});
  if (file.bad()) return absl::InvalidArgumentError("cannot read it");
  Loaded loaded;
  {
    KVERN_ASSIGN_OR_RETURN(const formats::Safetensors contents,
                           formats::ParseSafetensors(
                               std::as_bytes(std::span<const char>(bytes.data(), bytes.size()))));
    KVERN_ASSIGN_OR_RETURN(loaded.spec, SpecOf(contents));
  }
  bool existed = false;
  KVERN_ASSIGN_OR_RETURN(const engine::CalibrationArtifact artifact,
                         registry.Import(std::move(bytes), &existed));
  loaded.sha256 = artifact.sha256;
  return loaded;
}

// Two files describe one model when name and geometry agree.
std::string KeyOf(const pipeline::ModelSpec& spec) {
  return absl::StrCat(spec.display_name, "/", spec.num_layers, "/", spec.q_heads, "/",
                      spec.kv_heads, "/", spec.head_dim);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> LoadModels(const std::string& directory,
                                                    engine::ModelRegistry& registry) {
  KVERN_ASSIGN_OR_RETURN(const std::vector<std::string> paths, FilesOf(directory));
  std::map<std::string, engine::RegisteredModel> models;
  for (const std::string& path : paths) {
    absl::StatusOr<Loaded> loaded = LoadFile(path, registry);
    if (!loaded.ok()) return InFile(path, loaded.status());
    engine::RegisteredModel& model = models[KeyOf(loaded->spec)];
    model.spec = std::move(loaded->spec);
    model.calibrations.push_back(std::move(loaded->sha256));
  }
  std::vector<std::string> ids;
  for (auto& [key, model] : models) {
    absl::StatusOr<engine::RegisteredModel> registered = registry.Register(std::move(model));
    if (!registered.ok()) return InFile(directory, registered.status());
    ids.push_back(registered->id);
  }
  return ids;
}

}  // namespace kvern
