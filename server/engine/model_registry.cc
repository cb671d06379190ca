// Models and calibrations go in once, checked against each other, and are shared from then on.
#include "server/engine/model_registry.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <set>
#include <span>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/error_reason.h"
#include "kernels/base/status_macros.h"
#include "server/engine/calibration_file.h"
#include "server/pipeline/rope_angles.h"

namespace kvern::engine {
namespace {

constexpr size_t kMaxModels = 4096;
constexpr size_t kMaxIdBytes = 128;

std::string Sha256Hex(absl::string_view bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  KVERN_CHECK(EVP_Digest(bytes.data(), bytes.size(), digest, &size, EVP_sha256(), nullptr) == 1);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest), size));
}

absl::Status Bad(const std::string& field, const std::string& what) {
  return WithField(absl::InvalidArgumentError(absl::StrCat(field, ": ", what)), field);
}

absl::Status CheckRange(const std::string& field, int64_t got, int64_t max) {
  if (got >= 1 && got <= max) return absl::OkStatus();
  return Bad(field, absl::StrCat("got ", got, ", want 1..", max));
}

absl::Status CheckRope(const pipeline::ModelSpec& spec) {
  const pipeline::RopeSpec& rope = spec.rope;
  if (rope.Bands() > spec.head_dim / 2) {
    return Bad("model.spec.rope.inv_freq",
               absl::StrCat("got ", rope.Bands(), ", want at most ", spec.head_dim / 2));
  }
  for (const float frequency : rope.inv_freq) {
    if (!std::isfinite(frequency) || frequency < 0) {
      return Bad("model.spec.rope.inv_freq",
                 absl::StrCat("got ", frequency, ", want finite and >= 0"));
    }
  }
  if (!std::isfinite(rope.attention_scaling) || rope.attention_scaling <= 0) {
    return Bad("model.spec.rope.attention_scaling",
               absl::StrCat("got ", rope.attention_scaling, ", want finite and > 0"));
  }
  return absl::OkStatus();
}

absl::Status CheckSpec(const pipeline::ModelSpec& spec, const Limits& limits) {
  KVERN_RETURN_IF_ERROR(CheckRange("model.spec.num_layers", spec.num_layers, limits.layers));
  KVERN_RETURN_IF_ERROR(CheckRange("model.spec.kv_heads", spec.kv_heads, limits.kv_heads));
  KVERN_RETURN_IF_ERROR(CheckRange("model.spec.q_heads", spec.q_heads, 64 * limits.kv_heads));
  if (spec.q_heads % spec.kv_heads != 0) {
    return Bad("model.spec.q_heads", absl::StrCat("got ", spec.q_heads, ", want a multiple of ",
                                                  spec.kv_heads, " kv_heads"));
  }
  if (spec.head_dim < 8 || spec.head_dim > limits.head_dim || spec.head_dim % 8 != 0) {
    return Bad("model.spec.head_dim", absl::StrCat("got ", spec.head_dim, ", want 8..",
                                                   limits.head_dim, ", a multiple of 8"));
  }
  return CheckRope(spec);
}

absl::Status CheckId(const std::string& id) {
  const bool fits = !id.empty() && id.size() <= kMaxIdBytes &&
                    std::all_of(id.begin(), id.end(), [](unsigned char c) {
                      return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-';
                    });
  if (fits) return absl::OkStatus();
  return Bad("model.name", "got another id, want 1..128 bytes of [A-Za-z0-9_.-]");
}

template <class T>
void Append(const T& value, std::string* bytes) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string DerivedId(const RegisteredModel& model) {
  const pipeline::ModelSpec& spec = model.spec;
  std::string bytes = absl::StrCat(spec.num_layers, " ", spec.q_heads, " ", spec.kv_heads, " ",
                                   spec.head_dim, " ", static_cast<int>(spec.rope.layout), " ");
  Append(spec.rope.attention_scaling, &bytes);
  for (const float frequency : spec.rope.inv_freq) Append(frequency, &bytes);
  for (const std::string& sha256 : model.calibrations) absl::StrAppend(&bytes, " ", sha256);
  return absl::StrCat("model-", Sha256Hex(bytes).substr(0, 16));
}

absl::Status UnknownCalibration() {
  return WithReason(
      absl::NotFoundError("calibration: got a name that is not stored, want ImportCalibration "
                          "first"),
      "CALIBRATION_UNKNOWN");
}

absl::Status UnknownModel() {
  return WithReason(
      absl::NotFoundError("model: got a name that is not registered, want RegisterModel first"),
      "MODEL_UNKNOWN");
}

absl::Status NothingObserved() {
  return WithReason(absl::FailedPreconditionError("calibrations/observed: got no queries of the "
                                                  "model, want ObserveQueries first"),
                    "OBSERVED_TOO_FEW");
}

// Free text does not make another model.
bool SameModel(const RegisteredModel& a, const RegisteredModel& b) {
  return a.spec.num_layers == b.spec.num_layers && a.spec.q_heads == b.spec.q_heads &&
         a.spec.kv_heads == b.spec.kv_heads && a.spec.head_dim == b.spec.head_dim &&
         a.spec.rope.layout == b.spec.rope.layout && a.spec.rope.inv_freq == b.spec.rope.inv_freq &&
         a.spec.rope.attention_scaling == b.spec.rope.attention_scaling &&
         a.calibrations == b.calibrations;
}

absl::Status CheckCentres(const pipeline::ModelSpec& spec, const pipeline::QueryCentres& centres) {
  const int32_t bands = spec.rope.Bands() > 0 ? spec.rope.Bands() : spec.head_dim / 2;
  if (centres.num_layers == spec.num_layers && centres.q_heads == spec.q_heads &&
      centres.bands == bands) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("calibration: got [", centres.num_layers, ", ", centres.q_heads, ", ",
                   centres.bands, "], want the model's [num_layers, q_heads, bands] = [",
                   spec.num_layers, ", ", spec.q_heads, ", ", bands, "]"));
}

absl::Status CheckMoments(const pipeline::ModelSpec& spec, const pipeline::QueryMoments& moments) {
  if (moments.num_layers == spec.num_layers && moments.q_heads == spec.q_heads &&
      moments.head_dim == spec.head_dim) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("query moments: got [", moments.num_layers, ", ", moments.q_heads, ", ",
                   moments.head_dim, "], want the model's [num_layers, q_heads, head_dim] = [",
                   spec.num_layers, ", ", spec.q_heads, ", ", spec.head_dim, "]"));
}

absl::Status AddCalibration(const pipeline::ModelSpec& spec, const CalibrationArtifact& artifact,
                            pipeline::Calibrations* calibrations) {
  if (artifact.centres != nullptr) {
    KVERN_RETURN_IF_ERROR(CheckCentres(spec, *artifact.centres));
    if (calibrations->centres != nullptr) {
      return Bad("calibrations", "got two of kvern-calibration/1, want at most one");
    }
    calibrations->centres = artifact.centres;
  }
  if (artifact.moments != nullptr) {
    KVERN_RETURN_IF_ERROR(CheckMoments(spec, *artifact.moments));
    if (calibrations->moments != nullptr) {
      return Bad("calibrations", "got two of kvern-query-moments/1, want at most one");
    }
    calibrations->moments = artifact.moments;
  }
  absl::StrAppend(&calibrations->cache_key, artifact.sha256, ";");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RegisteredModel> ModelRegistry::Register(RegisteredModel model) {
  KVERN_RETURN_IF_ERROR(CheckSpec(model.spec, limits_));
  if (model.id.empty()) model.id = DerivedId(model);
  KVERN_RETURN_IF_ERROR(CheckId(model.id));
  KVERN_RETURN_IF_ERROR(Resolve(model, model.calibrations).status());
  absl::MutexLock lock(&mutex_);
  const auto known = models_.find(model.id);
  if (known != models_.end()) {
    if (SameModel(*known->second, model)) return *known->second;
    return absl::AlreadyExistsError(
        absl::StrCat("model ", model.id, ": got another spec, want the one registered"));
  }
  if (models_.size() >= kMaxModels) {
    return absl::ResourceExhaustedError(
        absl::StrCat("models: got ", models_.size() + 1, ", want at most ", kMaxModels));
  }
  // An import may have evicted one since; from here on they are defaults, which stay.
  for (const std::string& sha256 : model.calibrations) {
    if (!calibrations_.contains(sha256)) return UnknownCalibration();
  }
  model.spec.rope.angles = std::make_shared<pipeline::RopeAngles>();
  model.life = ++lives_;
  models_.emplace(model.id, std::make_shared<const RegisteredModel>(model));
  return model;
}

absl::StatusOr<std::shared_ptr<const RegisteredModel>> ModelRegistry::Find(
    const std::string& id) const {
  absl::MutexLock lock(&mutex_);
  const auto found = models_.find(id);
  if (found != models_.end()) return found->second;
  return UnknownModel();
}

std::vector<RegisteredModel> ModelRegistry::List() const {
  absl::MutexLock lock(&mutex_);
  std::vector<RegisteredModel> models;
  for (const auto& [id, model] : models_) models.push_back(*model);
  return models;
}

bool ModelRegistry::Delete(const std::string& id) {
  absl::MutexLock lock(&mutex_);
  if (const auto observed = observed_.find(id); observed != observed_.end()) {
    observed_bytes_ -= ObservedQueries::BytesFor(models_.at(id)->spec);
    observed_.erase(observed);
  }
  return models_.erase(id) > 0;
}

absl::StatusOr<CalibrationArtifact> ModelRegistry::Import(std::string bytes, bool* existed) {
  const std::string sha256 = Sha256Hex(bytes);
  const auto known = FindCalibration(sha256);
  *existed = known.ok();
  if (*existed) return known;
  KVERN_ASSIGN_OR_RETURN(CalibrationArtifact artifact,
                         ParseCalibration(std::as_bytes(std::span(bytes)), limits_));
  artifact.sha256 = sha256;

  absl::MutexLock lock(&mutex_);
  // Another import of the same bytes may have come first; it holds the same.
  *existed = !calibrations_.emplace(sha256, artifact).second;
  if (*existed) return artifact;
  const absl::Status room = MakeRoom(artifact.size_bytes);
  if (!room.ok()) {
    calibrations_.erase(sha256);
    return room;
  }
  used_.push_back(sha256);
  calibration_bytes_ += artifact.size_bytes;
  return artifact;
}

absl::Status ModelRegistry::MakeRoom(int64_t bytes) {
  std::set<std::string> defaults;
  for (const auto& [id, model] : models_) {
    defaults.insert(model->calibrations.begin(), model->calibrations.end());
  }
  int64_t free_bytes = limits_.calibration_bytes - calibration_bytes_;
  std::vector<std::string> evicted;
  for (const std::string& candidate : used_) {
    if (free_bytes >= bytes) break;
    if (defaults.contains(candidate)) continue;
    free_bytes += calibrations_.at(candidate).size_bytes;
    evicted.push_back(candidate);
  }
  if (free_bytes < bytes) {
    return WithReason(absl::ResourceExhaustedError(absl::StrCat("calibration: got ", bytes,
                                                                " bytes, want at most ", free_bytes,
                                                                " (--calibration-bytes)")),
                      "QUOTA");
  }
  for (const std::string& name : evicted) {
    calibrations_.erase(name);
    used_.remove(name);
  }
  calibration_bytes_ = limits_.calibration_bytes - free_bytes;
  return absl::OkStatus();
}

bool ModelRegistry::Has(const std::string& sha256) const {
  absl::MutexLock lock(&mutex_);
  return calibrations_.contains(sha256);
}

absl::StatusOr<CalibrationArtifact> ModelRegistry::FindCalibration(
    const std::string& sha256) const {
  absl::MutexLock lock(&mutex_);
  const auto found = calibrations_.find(sha256);
  if (found == calibrations_.end()) return UnknownCalibration();
  used_.splice(used_.end(), used_, std::find(used_.begin(), used_.end(), sha256));
  return found->second;
}

std::vector<CalibrationArtifact> ModelRegistry::ListCalibrations() const {
  absl::MutexLock lock(&mutex_);
  std::vector<CalibrationArtifact> artifacts;
  for (const auto& [sha256, artifact] : calibrations_) artifacts.push_back(artifact);
  return artifacts;
}

absl::StatusOr<pipeline::Calibrations> ModelRegistry::Resolve(
    const RegisteredModel& model, const std::vector<std::string>& names,
    std::span<const int32_t> layers) const {
  pipeline::Calibrations calibrations;
  bool asked = false;
  for (const std::string& name : names.empty() ? model.calibrations : names) {
    if (name == kObservedCalibration) {
      asked = true;
      continue;
    }
    KVERN_ASSIGN_OR_RETURN(const CalibrationArtifact artifact, FindCalibration(name));
    KVERN_RETURN_IF_ERROR(AddCalibration(model.spec, artifact, &calibrations));
  }
  if (asked || names.empty()) {
    KVERN_RETURN_IF_ERROR(
        AddObserved(model, asked ? Asked::kByName : Asked::kByDefault, layers, &calibrations));
  }
  return calibrations;
}

absl::Status ModelRegistry::AddObserved(const RegisteredModel& model, Asked asked,
                                        std::span<const int32_t> layers,
                                        pipeline::Calibrations* calibrations) const {
  if (calibrations->centres != nullptr && calibrations->moments != nullptr) {
    return absl::OkStatus();
  }
  const std::shared_ptr<ObservedQueries> observed = Observed(model);
  const bool by_name = asked == Asked::kByName;
  if (observed == nullptr) return by_name ? NothingObserved() : absl::OkStatus();
  const auto snapshot = observed->Current(layers);
  if (snapshot == nullptr) return by_name ? observed->TooFew(layers) : absl::OkStatus();
  if (calibrations->centres == nullptr) {
    calibrations->centres = snapshot->centres;
    calibrations->observed_centres = true;
  }
  if (calibrations->moments == nullptr) {
    calibrations->moments = snapshot->moments;
    calibrations->observed_moments = true;
  }
  calibrations->observed_tokens = snapshot->LeastTokens(layers);
  calibrations->cache_key += snapshot->cache_key;
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<ObservedQueries>> ModelRegistry::Observe(
    const RegisteredModel& model) {
  if (auto observed = Observed(model)) return observed;
  // Large, so made outside the lock; its bytes are taken before and given back if it is not wanted.
  const int64_t bytes = ObservedQueries::BytesFor(model.spec);
  KVERN_RETURN_IF_ERROR(TakeObservedBytes(model, bytes));
  std::shared_ptr<ObservedQueries> fresh;
  try {
    fresh = std::make_shared<ObservedQueries>(model.spec);
  } catch (const std::bad_alloc&) {
    // Answered below.
  }
  absl::MutexLock lock(&mutex_);
  const bool gone = !IsAlive(model);
  std::shared_ptr<ObservedQueries> observed = fresh;
  if (!gone && fresh != nullptr) observed = observed_.emplace(model.id, fresh).first->second;
  if (gone || observed != fresh || fresh == nullptr) observed_bytes_ -= bytes;
  if (gone) return UnknownModel();
  if (observed != nullptr) return observed;
  return absl::ResourceExhaustedError(
      absl::StrCat("observed queries: got no memory for ", bytes, " bytes, want more of it"));
}

bool ModelRegistry::IsAlive(const RegisteredModel& model) const {
  const auto found = models_.find(model.id);
  return found != models_.end() && found->second->life == model.life;
}

absl::Status ModelRegistry::TakeObservedBytes(const RegisteredModel& model, int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (!IsAlive(model)) return UnknownModel();
  const int64_t left = limits_.observed_bytes - observed_bytes_;
  if (bytes > left) {
    return WithReason(
        absl::ResourceExhaustedError(absl::StrCat("observed queries: got ", bytes,
                                                  " bytes of statistics for the model, want at "
                                                  "most ",
                                                  left, " (--observed-bytes)")),
        "QUOTA");
  }
  observed_bytes_ += bytes;
  return absl::OkStatus();
}

std::shared_ptr<ObservedQueries> ModelRegistry::Observed(const RegisteredModel& model) const {
  absl::MutexLock lock(&mutex_);
  if (!IsAlive(model)) return nullptr;
  const auto found = observed_.find(model.id);
  return found == observed_.end() ? nullptr : found->second;
}

int64_t ModelRegistry::ObservedBytes() const {
  absl::MutexLock lock(&mutex_);
  return observed_bytes_;
}

}  // namespace kvern::engine
