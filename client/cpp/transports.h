// The three ways of one cache to the server and back.
#ifndef KVERN_CLIENT_CPP_TRANSPORTS_H_
#define KVERN_CLIENT_CPP_TRANSPORTS_H_

#include "absl/status/statusor.h"
#include "client/cpp/compress_file.h"

namespace kvern::client {

// What a transport brings back, still in the words of the wire.
struct Carried {
  v1::SequenceResult result;
  std::string k, v;     // dense, or empty
  v1::PackedKv packed;  // or empty
};

// Each fills `source` and placement of `request`, whose one sequence has all the rest.
absl::StatusOr<Carried> CarryInline(const Client& client, const CacheFile& cache,
                                    v1::CompressCacheRequest request);
absl::StatusOr<Carried> CarryThroughStore(const Client& client, const CacheFile& cache,
                                          v1::CompressCacheRequest request,
                                          const Progress& progress);
absl::StatusOr<Carried> CarryThroughPool(const Client& client, const CacheFile& cache,
                                         v1::CompressCacheRequest request,
                                         const Progress& progress);

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_TRANSPORTS_H_
