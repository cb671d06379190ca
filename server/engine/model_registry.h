// Registered models and imported calibrations; both immutable once in.
#ifndef KVERN_SERVER_ENGINE_MODEL_REGISTRY_H_
#define KVERN_SERVER_ENGINE_MODEL_REGISTRY_H_

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/engine/observed_queries.h"
#include "server/memory/limits.h"
#include "server/pipeline/model.h"

namespace kvern::engine {

struct RegisteredModel {
  std::string id;
  pipeline::ModelSpec spec;
  std::vector<std::string> calibrations;  // default artifacts, by SHA-256 in hex
  // Set by Register, above 0: of no other registration, not even of the same spec under the same id
  // after a Delete.
  int64_t life = 0;
};

struct CalibrationArtifact {
  std::string sha256;  // hex
  std::string format;
  int64_t size_bytes = 0;
  std::shared_ptr<const pipeline::QueryCentres> centres;
  std::shared_ptr<const pipeline::QueryMoments> moments;
};

// Thread-safe.
class ModelRegistry {
 public:
  explicit ModelRegistry(const Limits& limits) : limits_(limits) {}

  // An empty id is derived from the spec. Errors: InvalidArgument (field path); AlreadyExists for
  // another spec under the id; NotFound for an unknown default calibration.
  absl::StatusOr<RegisteredModel> Register(RegisteredModel model);
  absl::StatusOr<std::shared_ptr<const RegisteredModel>> Find(const std::string& id) const;
  std::vector<RegisteredModel> List() const;
  bool Delete(const std::string& id);

  // Parses and keeps an artifact; least recently used non-defaults go when calibration_bytes is
  // reached. Errors: InvalidArgument naming the tensor; ResourceExhausted.
  absl::StatusOr<CalibrationArtifact> Import(std::string bytes, bool* existed);
  bool Has(const std::string& sha256) const;
  absl::StatusOr<CalibrationArtifact> FindCalibration(const std::string& sha256) const;
  std::vector<CalibrationArtifact> ListCalibrations() const;

  // What live queries say of this life of a model; made by the first Observe, gone with the model.
  // Errors: NotFound/MODEL_UNKNOWN, also when another life has its id now; ResourceExhausted/QUOTA
  // when observed_bytes would be exceeded.
  absl::StatusOr<std::shared_ptr<ObservedQueries>> Observe(const RegisteredModel& model);
  // Null where nothing was observed, and for a model that is gone.
  std::shared_ptr<ObservedQueries> Observed(const RegisteredModel& model) const;
  int64_t ObservedBytes() const;  // of all models

  // The calibrations that a request's policy names, else the model's defaults, with observed
  // queries of `layers` (none: of all) in place of a kind that these lack; geometry checked against
  // the model. Errors:
  // NotFound/CALIBRATION_UNKNOWN; InvalidArgument on a mismatch;
  // FailedPrecondition/OBSERVED_TOO_FEW for kObservedCalibration by name.
  absl::StatusOr<pipeline::Calibrations> Resolve(const RegisteredModel& model,
                                                 const std::vector<std::string>& names,
                                                 std::span<const int32_t> layers = {}) const;

 private:
  bool IsAlive(const RegisteredModel& model) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Evicts until `bytes` more fit. Errors: ResourceExhausted; nothing changes then.
  absl::Status MakeRoom(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status TakeObservedBytes(const RegisteredModel& model, int64_t bytes);
  // Observed queries for the kinds that `calibrations` lacks.
  enum class Asked : uint8_t { kByDefault, kByName };
  absl::Status AddObserved(const RegisteredModel& model, Asked asked,
                           std::span<const int32_t> layers,
                           pipeline::Calibrations* calibrations) const;

  const Limits limits_;
  mutable absl::Mutex mutex_;
  absl::btree_map<std::string, std::shared_ptr<const RegisteredModel>> models_
      ABSL_GUARDED_BY(mutex_);
  int64_t lives_ ABSL_GUARDED_BY(mutex_) = 0;  // registrations so far
  absl::btree_map<std::string, CalibrationArtifact> calibrations_ ABSL_GUARDED_BY(mutex_);
  mutable std::list<std::string> used_ ABSL_GUARDED_BY(mutex_);  // least recent first
  int64_t calibration_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::btree_map<std::string, std::shared_ptr<ObservedQueries>> observed_ ABSL_GUARDED_BY(mutex_);
  int64_t observed_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_MODEL_REGISTRY_H_
