// Five services over one engine, and the limits that hold before any of them sees a message.
#include "server/rpc/services.h"

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/server_builder.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/time/clock.h"
#include "server/rpc/compression_service.h"
#include "server/rpc/model_service.h"
#include "server/rpc/pool_service.h"
#include "server/rpc/server_service.h"
#include "server/rpc/store_service.h"

namespace kvern::rpc {
namespace {

// Beside the inline bytes: block ids, positions and side tensors of a cohort; and the largest chunk
// of a stream (4 MiB) with its framing, where the inline limit is small.
constexpr int64_t kReceiveRoomBytes = int64_t{5} << 20;

int ClampToInt(int64_t bytes) {
  return static_cast<int>(std::min<int64_t>(bytes, std::numeric_limits<int>::max()));
}

}  // namespace

struct Services::Impl {
  explicit Impl(const ServicesOptions& options)
      : import_bytes(options.engine->GetLimits().calibration_bytes),
        decode_bytes(options.engine->GetLimits().queued_bytes),
        worker(options.engine->GetLimits().queued_calls),
        deps{options.engine, options.events, &worker, &import_bytes, &decode_bytes},
        compression(deps),
        pools(deps),
        store(deps),
        models(deps),
        server(deps, ServerFacts{.version = options.version,
                                 .commit = options.commit,
                                 .broker_address = options.broker_address,
                                 .backend_reason = options.backend_reason,
                                 .threads = options.threads,
                                 .started = absl::Now()}) {}

  ByteBudget import_bytes;
  ByteBudget decode_bytes;
  BlockingWorker worker;
  const ServiceDeps deps;
  CompressionService compression;
  PoolService pools;
  StoreService store;
  ModelService models;
  ServerService server;
};

Services::Services(ServicesOptions options) : impl_(std::make_unique<Impl>(options)) {
  // A message that does not parse gets a status; the library would tell stderr too, past our log.
  google::protobuf::SetLogHandler(nullptr);
}

Services::~Services() = default;

void Services::Register(grpc::ServerBuilder* builder) {
  const Limits& limits = impl_->deps.GetLimits();
  builder->SetMaxReceiveMessageSize(ClampToInt(limits.inline_bytes + kReceiveRoomBytes));
  builder->SetMaxSendMessageSize(ClampToInt(limits.max_response_bytes));
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, ClampToInt(limits.metadata_bytes));
  builder->RegisterService(&impl_->compression);
  builder->RegisterService(&impl_->pools);
  builder->RegisterService(&impl_->store);
  builder->RegisterService(&impl_->models);
  builder->RegisterService(&impl_->server);
}

}  // namespace kvern::rpc
