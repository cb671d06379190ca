// Observed queries as calibration files: what ParseCalibration and --models read.
#ifndef KVERN_SERVER_ENGINE_CALIBRATION_EXPORT_H_
#define KVERN_SERVER_ENGINE_CALIBRATION_EXPORT_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/engine/model_registry.h"
#include "server/engine/observed_queries.h"

namespace kvern::engine {

// Bytes of a `kvern-calibration/1` or `kvern-query-moments/1` file, with the model's geometry and
// RoPE. Errors: InvalidArgument for another format.
absl::StatusOr<std::string> ExportCalibration(const RegisteredModel& model,
                                              const ObservedQueries::Snapshot& observed,
                                              const std::string& format);

}  // namespace kvern::engine

#endif  // KVERN_SERVER_ENGINE_CALIBRATION_EXPORT_H_
