// Bytes that stream: sequences into and out of the store, calibrations into the server.
#ifndef KVERN_CLIENT_CPP_UPLOAD_H_
#define KVERN_CLIENT_CPP_UPLOAD_H_

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "client/cpp/cache_file.h"
#include "client/cpp/client.h"
#include "client/cpp/shared_pool.h"

namespace kvern::client {

// Stores `cache` under header.name (`sequences/{id}`). header.num_tokens is cache.tokens. Nothing
// is stored on failure. Errors: of StoreService.PutSequence.
absl::StatusOr<v1::StoredSequence> PutSequence(const Client& client,
                                               const v1::StoredSequence& header,
                                               const DenseCache& cache, const Progress& progress);

// Appends [layers, kv_heads, header.num_tokens, head_dim] of keys and of values.
absl::StatusOr<v1::StoredSequence> AppendSequence(const Client& client,
                                                  const v1::AppendHeader& header,
                                                  const DenseCache& tokens,
                                                  const Progress& progress);

struct FetchedSequence {
  v1::FetchHeader header;
  std::string k, v;    // [layers, kv_heads, num_tokens, head_dim]; empty when packed
  std::string packed;  // blocks; header.packed_table says what they are
};
enum class FetchForm { kAsStored, kDecoded };
// Errors: NotFound/SEQUENCE_UNKNOWN; DataLoss when the chunks are not the bytes announced.
absl::StatusOr<FetchedSequence> FetchSequence(const Client& client, const std::string& name,
                                              FetchForm form, const Progress& progress);

// Uploads an artifact unless the server holds it; `calibrations/{sha256}` either way.
// Errors: of ModelService.ImportCalibration.
absl::StatusOr<std::string> ImportCalibration(const Client& client,
                                              std::span<const std::byte> artifact,
                                              const Progress& progress);

// `calibrations/{sha256 in hex}`.
std::string CalibrationName(std::span<const std::byte> artifact);

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_UPLOAD_H_
