// Calibration from live queries: sent to the server, and back as a file.
#ifndef KVERN_CLIENT_CPP_OBSERVE_H_
#define KVERN_CLIENT_CPP_OBSERVE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/cache_file.h"
#include "client/cpp/client.h"
#include "kernels/base/dtype.h"

namespace kvern::client {

// Queries of some positions of a model. Borrows their bytes.
struct QueriesToObserve {
  std::string model;                   // `models/{model}`
  std::string request_id;              // empty: every message counts
  std::vector<int32_t> layer_indices;  // empty: all
  v1::QueryForm form = v1::QUERY_FORM_UNSPECIFIED;
  std::vector<int32_t> positions;  // [tokens], after RoPE only
  DType dtype = DType::kBF16;
  int64_t layers = 0, q_heads = 0, tokens = 0, head_dim = 0;
  std::span<const std::byte> queries;  // [layers, q_heads, tokens, head_dim]
};

// Streams them in messages of at most 4 MiB, cut by tokens, or by layers where a token is larger.
// The same cuts for the same shape, so that a request_id goes on where a stream broke off. Errors:
// InvalidArgument where bytes and shape disagree; of ModelService.ObserveQueries.
absl::StatusOr<v1::ObserveQueriesResponse> ObserveQueries(const Client& client,
                                                          const QueriesToObserve& queries);

// The file's q_window, the queries of its last tokens after RoPE. Errors: InvalidArgument without
// one.
absl::StatusOr<QueriesToObserve> ObservableQueries(const CacheFile& cache,
                                                   const std::string& model);

// Bytes of a `kvern-calibration/1` or `kvern-query-moments/1` file of what a model's queries were.
// Errors: of ModelService.ExportCalibration.
absl::StatusOr<std::string> ExportCalibration(const Client& client, const std::string& model,
                                              const std::string& format);

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_OBSERVE_H_
