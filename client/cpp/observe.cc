// Tokens are the third axis: a message of some of them is gathered row by row.
#include "client/cpp/observe.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/proto_types.h"
#include "client/cpp/status_details.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "kernels/base/status_macros.h"
#include "kvern/v1/model.grpc.pb.h"

namespace kvern::client {
namespace {

constexpr int64_t kMessageBytes = int64_t{4} << 20;

// Some layers and some tokens of all.
struct Cut {
  int64_t first_layer, layers, first_token, tokens;
};

int64_t RowBytes(const QueriesToObserve& queries) {
  return queries.head_dim * SizeOf(queries.dtype);
}

absl::Status CheckShape(const QueriesToObserve& queries) {
  const int64_t rows = queries.layers * queries.q_heads * queries.tokens;
  if (rows > 0 && std::ssize(queries.queries) == rows * RowBytes(queries)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "queries: got ", queries.queries.size(), " bytes, want those of [", queries.layers, ", ",
      queries.q_heads, ", ", queries.tokens, ", ", queries.head_dim, "], and some"));
}

std::vector<Cut> CutsOf(const QueriesToObserve& queries) {
  const int64_t layer_bytes = queries.q_heads * RowBytes(queries);  // of one token
  const int64_t layers = std::clamp<int64_t>(kMessageBytes / layer_bytes, 1, queries.layers);
  const int64_t tokens =
      std::clamp<int64_t>(kMessageBytes / (layers * layer_bytes), 1, queries.tokens);
  std::vector<Cut> cuts;
  for (int64_t token = 0; token < queries.tokens; token += tokens) {
    for (int64_t layer = 0; layer < queries.layers; layer += layers) {
      cuts.push_back({layer, std::min(layers, queries.layers - layer), token,
                      std::min(tokens, queries.tokens - token)});
    }
  }
  return cuts;
}

v1::ObserveQueriesRequest MessageOf(const QueriesToObserve& queries, const Cut& cut) {
  v1::ObserveQueriesRequest message;
  message.set_form(queries.form);
  std::vector<int32_t> layers = queries.layer_indices;
  if (layers.empty() && cut.layers < queries.layers) {
    layers.resize(queries.layers);
    std::iota(layers.begin(), layers.end(), 0);
  }
  if (!layers.empty()) {
    const auto first = layers.begin() + cut.first_layer;
    message.mutable_layer_indices()->Assign(first, first + cut.layers);
  }
  if (!queries.positions.empty()) {
    const auto first = queries.positions.begin() + cut.first_token;
    message.mutable_positions()->Assign(first, first + cut.tokens);
  }
  v1::Tensor* tensor = message.mutable_queries();
  tensor->set_dtype(ToProto(queries.dtype));
  for (const int64_t extent : {cut.layers, queries.q_heads, cut.tokens, queries.head_dim}) {
    tensor->add_shape(extent);
  }
  const auto* bytes = reinterpret_cast<const char*>(queries.queries.data());
  for (int64_t row = 0; row < cut.layers * queries.q_heads; ++row) {
    const int64_t token =
        (cut.first_layer * queries.q_heads + row) * queries.tokens + cut.first_token;
    tensor->mutable_data()->append(bytes + token * RowBytes(queries),
                                   cut.tokens * RowBytes(queries));
  }
  return message;
}

}  // namespace

absl::StatusOr<v1::ObserveQueriesResponse> ObserveQueries(const Client& client,
                                                          const QueriesToObserve& queries) {
  KVERN_RETURN_IF_ERROR(CheckShape(queries));
  const auto stub = v1::ModelService::NewStub(client.Channel());
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::ObserveQueriesResponse response;
  const auto writer = stub->ObserveQueries(&context, &response);
  bool first = true;
  for (const Cut& cut : CutsOf(queries)) {
    v1::ObserveQueriesRequest message = MessageOf(queries, cut);
    if (first) {
      message.set_model(queries.model);
      message.set_request_id(queries.request_id);
    }
    first = false;
    if (!writer->Write(message)) break;  // Finish knows why
  }
  writer->WritesDone();
  KVERN_RETURN_IF_ERROR(FromGrpc(writer->Finish()));
  return response;
}

absl::StatusOr<QueriesToObserve> ObservableQueries(const CacheFile& cache,
                                                   const std::string& model) {
  const formats::TensorEntry* window = cache.Contents().Find("q_window");
  if (window == nullptr || window->shape.size() != 4 || window->shape[2] > cache.LogicalTokens()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cache file '", cache.Path(), "': q_window: got none that fits, want [layers, ",
        "q_heads, window, head_dim] of the last tokens"));
  }
  QueriesToObserve queries;
  queries.model = model;
  queries.layer_indices = cache.LayerIndices();
  queries.form = v1::QUERY_FORM_AFTER_ROPE;
  queries.dtype = *FromFileDType(window->dtype);  // CacheFile::Open has looked
  queries.layers = window->shape[0];
  queries.q_heads = window->shape[1];
  queries.tokens = window->shape[2];
  queries.head_dim = window->shape[3];
  queries.positions.resize(queries.tokens);
  std::iota(queries.positions.begin(), queries.positions.end(),
            static_cast<int32_t>(cache.LogicalTokens() - queries.tokens));
  queries.queries = window->bytes;
  return queries;
}

absl::StatusOr<std::string> ExportCalibration(const Client& client, const std::string& model,
                                              const std::string& format) {
  const auto stub = v1::ModelService::NewStub(client.Channel());
  grpc::ClientContext context;
  client.Prepare(&context);
  v1::ExportCalibrationRequest request;
  request.set_model(model);
  request.set_format(format);
  const auto reader = stub->ExportCalibration(&context, request);
  std::string file;
  v1::ExportCalibrationResponse message;
  while (reader->Read(&message)) file += message.data();
  KVERN_RETURN_IF_ERROR(FromGrpc(reader->Finish()));
  return file;
}

}  // namespace kvern::client
