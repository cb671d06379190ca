// Any bytes as any request: FromProto answers, and never crashes. The first byte picks the message.
#include <cstddef>
#include <cstdint>
#include <memory>

#include "google/protobuf/stubs/logging.h"
#include "server/rpc/compress_from_proto.h"
#include "server/rpc/model_from_proto.h"
#include "server/rpc/observe_from_proto.h"
#include "server/rpc/plan_from_proto.h"
#include "server/rpc/pool_from_proto.h"
#include "server/rpc/request_hash.h"
#include "server/rpc/store_from_proto.h"

namespace {

using namespace kvern;       // NOLINT: a fuzz target has no callers
using namespace kvern::rpc;  // NOLINT

pipeline::ModelSpec Model() {
  pipeline::ModelSpec model;
  model.num_layers = 2;
  model.q_heads = 4;
  model.kv_heads = 2;
  model.head_dim = 8;
  return model;
}

template <class Message>
bool Parse(const uint8_t* data, size_t size, Message* message) {
  return message->ParseFromArray(data, static_cast<int>(size));
}

void FuzzCompress(const uint8_t* data, size_t size, const pipeline::ModelSpec* model) {
  const auto request = std::make_shared<v1::CompressCacheRequest>();
  if (!Parse(data, size, request.get())) return;
  HashWithoutTensors(request.get());
  const Limits limits;
  const auto job = FromProto(request, Edge{.limits = limits, .model = model});
  static_cast<void>(job);
}

void FuzzPool(const uint8_t* data, size_t size) {
  v1::RegisterPoolRequest request;
  if (!Parse(data, size, &request)) return;
  auto spec = FromProto(request, Limits{});
  if (spec.ok()) static_cast<void>(BindModel(Model(), &*spec));
}

void FuzzModel(const uint8_t* data, size_t size) {
  v1::RegisterModelRequest request;
  if (Parse(data, size, &request)) static_cast<void>(FromProto(request, Limits{}));
}

void FuzzObserve(const uint8_t* data, size_t size) {
  v1::ObserveQueriesRequest request;
  if (!Parse(data, size, &request)) return;
  pipeline::ModelSpec model = Model();
  model.rope.inv_freq = {1.0f, 0.1f, 0.01f};
  auto batch = FromProto(request, model);
  if (batch.ok()) pipeline::QueryStatistics(model).Add(*batch);
}

void FuzzPlan(const uint8_t* data, size_t size, const pipeline::ModelSpec& model) {
  const Limits limits;
  v1::PlanCompressionRequest plan;
  if (Parse(data, size, &plan)) {
    static_cast<void>(FromProto(plan, Edge{.limits = limits, .model = &model}));
  }
  v1::ApplyCompressionRequest apply;
  if (Parse(data, size, &apply)) static_cast<void>(FromProto(apply, limits));
}

void FuzzStore(const uint8_t* data, size_t size) {
  v1::PutSequenceRequest put;
  if (Parse(data, size, &put)) static_cast<void>(FromProto(put.header(), Model(), Limits{}));
  v1::AppendSequenceRequest append;
  if (Parse(data, size, &append)) static_cast<void>(FromProto(append.header(), Limits{}));
}

}  // namespace

// protobuf would write a line for every input that is not UTF-8.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  google::protobuf::SetLogHandler(nullptr);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const pipeline::ModelSpec model = Model();
  switch (data[0] % 7) {
    case 0:
      FuzzCompress(data + 1, size - 1, &model);
      break;
    case 1:
      FuzzPool(data + 1, size - 1);
      break;
    case 2:
      FuzzModel(data + 1, size - 1);
      break;
    case 3:
      FuzzStore(data + 1, size - 1);
      break;
    case 6:
      FuzzPlan(data + 1, size - 1, model);
      break;
    case 5:
      FuzzObserve(data + 1, size - 1);
      break;
    default:
      FuzzCompress(data + 1, size - 1, nullptr);
      break;
  }
  return 0;
}
