// The services of kvernd without listeners: what `--local` measures and tests is the same path.
#include "server/main/in_process.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/time/time.h"
#include "grpcpp/grpcpp.h"
#include "kernels/base/status_macros.h"
#include "server/engine/engine.h"
#include "server/main/version.h"
#include "server/rpc/services.h"

namespace kvern {

struct InProcessServer::State {
  std::unique_ptr<engine::Engine> engine;
  std::unique_ptr<rpc::Services> services;
  std::unique_ptr<grpc::Server> server;
  std::shared_ptr<grpc::Channel> channel;
};

InProcessServer::InProcessServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<InProcessServer>> InProcessServer::Start(
    const BackendOptions& backend, const Limits& limits) {
  auto state = std::make_unique<State>();
  engine::EngineOptions engine_options;
  engine_options.limits = limits;
  // A cache that comes from a file and goes into one: a device may have no room for all of it.
  engine_options.store_place = engine::StorePlace::kHost;
  KVERN_ASSIGN_OR_RETURN(engine_options.backend, MakeBackend(backend));
  KVERN_ASSIGN_OR_RETURN(state->engine, engine::Engine::Create(std::move(engine_options)));

  rpc::ServicesOptions options;
  options.engine = state->engine.get();
  options.version = Version();
  options.commit = Commit();
  options.threads = backend.threads > 0
                        ? backend.threads
                        : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  state->services = std::make_unique<rpc::Services>(options);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  state->services->Register(&builder);
  state->server = builder.BuildAndStart();
  if (state->server == nullptr) return absl::InternalError("the in-process server did not start");
  state->server->GetHealthCheckService()->SetServingStatus("kvern.v1.CompressionService", true);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);  // both ends are this process
  state->channel = state->server->InProcessChannel(arguments);
  return std::unique_ptr<InProcessServer>(new InProcessServer(std::move(state)));
}

InProcessServer::~InProcessServer() {
  state_->channel.reset();
  state_->engine->Drain(absl::ZeroDuration());
  state_->server->Shutdown(std::chrono::system_clock::now());
}

std::shared_ptr<grpc::Channel> InProcessServer::Channel() const { return state_->channel; }

}  // namespace kvern
