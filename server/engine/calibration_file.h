// Calibration artifacts as they arrive: safetensors of query statistics, from anyone.
#ifndef KVERN_SERVER_ENGINE_CALIBRATION_FILE_H_
#define KVERN_SERVER_ENGINE_CALIBRATION_FILE_H_

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"
#include "server/engine/model_registry.h"
#include "server/memory/limits.h"

namespace kvern::engine {

inline constexpr char kCentresFormat[] = "kvern-calibration/1";
inline constexpr char kMomentsFormat[] = "kvern-query-moments/1";

// Reads `kvern-calibration/1` or `kvern-query-moments/1`; the digest is left empty. Errors:
// InvalidArgument naming the tensor (what, got, want): shape, element type, values that are not
// finite, |mean| above the mean of |.|, negative variances or sensitivities.
absl::StatusOr<CalibrationArtifact> ParseCalibration(std::span<const std::byte> file,
                                                     const Limits& limits);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_CALIBRATION_FILE_H_
