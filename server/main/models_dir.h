// Loads calibration files at start, so that a pod needs no client to import them.
#ifndef KVERN_SERVER_MAIN_MODELS_DIR_H_
#define KVERN_SERVER_MAIN_MODELS_DIR_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/engine/model_registry.h"

namespace kvern {

// Imports every *.safetensors file of `directory` and registers each model that their metadata
// describes, with its artifacts as defaults. Returns the ids of the models, in order.
// Errors: InvalidArgument naming the file; of ModelRegistry.
absl::StatusOr<std::vector<std::string>> LoadModels(const std::string& directory,
                                                    engine::ModelRegistry& registry);

}  // namespace kvern

#endif  // KVERN_SERVER_MAIN_MODELS_DIR_H_
