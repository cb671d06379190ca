// The model that a cache file describes: geometry and rotary embedding from tensors and metadata.
#ifndef KVERN_CLIENT_CPP_CACHE_MODEL_H_
#define KVERN_CLIENT_CPP_CACHE_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/cache_file.h"
#include "client/cpp/client.h"
#include "kvern/v1/model.pb.h"

namespace kvern::client {

// For Client::RegisterModel; the name is empty, so that the server derives it. Absent metadata:
// num_layers is what layer_indices need, q_heads equals kv_heads, RoPE is unknown without inv_freq
// and rope_theta. Errors: InvalidArgument naming the key.
absl::StatusOr<v1::Model> ModelOf(const CacheFile& cache);

// The server's model of the same name, geometry and RoPE: the one with most default calibrations,
// which a server loads from --models or got from `kvern models register`. Registers `described`
// when there is none. Errors: of ListModels and RegisterModel.
absl::StatusOr<v1::Model> FindOrRegisterModel(const Client& client, const v1::Model& described);

// What a model card says of its rotary embedding.
struct RopeConfig {
  double theta = 10000;
  int32_t rotary_dim = 0;  // even
  std::string scaling;     // JSON of a Hugging Face config: rope_type default, linear or llama3
};
// f32 [rotary_dim / 2], computed in f64. Errors: InvalidArgument for JSON that does not parse, a
// missing or senseless parameter, and a rope_type whose frequencies depend on more than these
// words.
absl::StatusOr<std::vector<float>> InverseFrequencies(const RopeConfig& config);

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_CACHE_MODEL_H_
