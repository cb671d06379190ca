// Members are declared in the order they start, so destruction is the order of stopping.
#include "server/main/server.h"

#include <sys/stat.h>

#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "grpcpp/ext/channelz_service_plugin.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "kernels/base/status_macros.h"
#include "server/engine/engine.h"
#include "server/main/health_watch.h"
#include "server/main/listeners.h"
#include "server/main/models_dir.h"
#include "server/main/version.h"
#include "server/memory/handle_broker.h"
#include "server/rpc/services.h"
#include "server/telemetry/metrics_server.h"

namespace kvern {
namespace {

// What the log and the counters both want to see.
class BothEvents final : public engine::RpcEvents {
 public:
  BothEvents(engine::RpcEvents& metrics, telemetry::LogFormat format)
      : metrics_(metrics), log_(format) {}
  void OnStart(engine::Rpc rpc) override { metrics_.OnStart(rpc); }
  void OnEnd(const engine::RpcEnd& end) override {
    metrics_.OnEnd(end);
    log_.OnEnd(end);
  }

 private:
  engine::RpcEvents& metrics_;
  telemetry::CallLog log_;
};

constexpr char kHealthName[] = "kvern.v1.CompressionService";

int ThreadsOf(const BackendOptions& backend) {
  if (backend.threads > 0) return backend.threads;
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// The first Unix socket, beside which broker and admin sockets stand; empty over TCP alone.
std::string FirstSocket(const Config& config) {
  for (const std::string& address : config.listen) {
    if (absl::StartsWith(address, "unix:")) return address.substr(5);
  }
  return "";
}

// A device reserves what the store will take of it.
absl::StatusOr<ChosenBackend> ChooseWithStore(const Config& config) {
  BackendOptions options = config.backend;
  if (config.store_place == engine::StorePlace::kHost) return ChooseBackend(options);
  options.store_bytes = config.limits.store_bytes;
  auto chosen = ChooseBackend(options);
  if (!absl::IsResourceExhausted(chosen.status())) return chosen;
  return absl::ResourceExhaustedError(absl::StrCat(
      chosen.status().message(), ", of which --store-bytes takes ", options.store_bytes,
      "; want fewer of them, fewer --scratch-bytes, or --store-memory host"));
}

struct Listening {
  std::string address;
  int port = 0;  // of TCP, filled by BuildAndStart
};

absl::StatusOr<std::unique_ptr<grpc::Server>> Build(grpc::ServerBuilder& builder,
                                                    const std::vector<Listening>& listening) {
  // Sockets are 0660 (ruling 15); their mode comes from the umask at bind.
  const mode_t before = umask(0117);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  umask(before);
  for (const Listening& one : listening) {
    if (server == nullptr || one.port == 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", one.address, ": taken, or not permitted"));
    }
  }
  return server;
}

}  // namespace

struct Server::State {
  Config config;
  telemetry::Metrics metrics;
  std::unique_ptr<BothEvents> rpc_events;
  std::string backend_reason;  // why `auto` chose it
  std::unique_ptr<engine::Engine> engine;
  std::vector<std::unique_ptr<SocketClaim>> claims;
  std::unique_ptr<rpc::Services> services;
  std::unique_ptr<memory::HandleBroker> broker;
  std::vector<Listening> listening;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<grpc::Server> admin;
  std::unique_ptr<telemetry::MetricsServer> exposer;
  std::unique_ptr<HealthWatch> health;  // where there is a device

  absl::Status StartEngine();
  absl::Status StartServices();
  void WatchDevice();
  absl::Status StartAdmin(const std::string& path);
  absl::Status StartMetrics();
  void Stop();
};

absl::Status Server::State::StartEngine() {
  engine::EngineOptions options;
  options.limits = config.limits;
  options.events = &metrics.Engine();
  options.store_place = config.store_place;
  KVERN_ASSIGN_OR_RETURN(ChosenBackend chosen, ChooseWithStore(config));
  options.backend = std::move(chosen.backend);
  backend_reason = std::move(chosen.reason);
  KVERN_ASSIGN_OR_RETURN(engine, engine::Engine::Create(std::move(options)));
  if (config.models_dir.empty()) return absl::OkStatus();
  return LoadModels(config.models_dir, engine->Models()).status();
}

absl::Status Server::State::StartServices() {
  const std::string socket = FirstSocket(config);
  rpc::ServicesOptions options;
  options.engine = engine.get();
  options.events = rpc_events.get();
  options.version = Version();
  options.commit = Commit();
  options.threads = ThreadsOf(config.backend);
  options.backend_reason = backend_reason;
  if (engine->Store().OnDevice()) {
    absl::StrAppend(&options.backend_reason, backend_reason.empty() ? "" : "; ",
                    "store in memory of the device");
  }
  if (!socket.empty()) options.broker_address = SiblingSocket(socket, "broker");
  services = std::make_unique<rpc::Services>(options);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  listening.resize(config.listen.size());
  for (size_t i = 0; i < config.listen.size(); ++i) {
    listening[i].address = config.listen[i];
    std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
    if (absl::StartsWith(config.listen[i], "unix:")) {
      KVERN_ASSIGN_OR_RETURN(std::unique_ptr<SocketClaim> claim,
                             SocketClaim::Take(config.listen[i].substr(5)));
      claims.push_back(std::move(claim));
    } else {
      KVERN_ASSIGN_OR_RETURN(credentials, TcpCredentials(config.tls));
    }
    builder.AddListeningPort(config.listen[i], std::move(credentials), &listening[i].port);
  }
  services->Register(&builder);
  if (!socket.empty()) {
    memory::BrokerOptions broker_options;
    broker_options.path = options.broker_address;
    KVERN_ASSIGN_OR_RETURN(broker,
                           memory::HandleBroker::Start(broker_options, &engine->Attachments(),
                                                       engine->Pools().Import()));
  }
  KVERN_ASSIGN_OR_RETURN(server, Build(builder, listening));
  server->GetHealthCheckService()->SetServingStatus(kHealthName, true);
  if (engine->Device().has_value()) WatchDevice();
  if (socket.empty()) return absl::OkStatus();
  return StartAdmin(SiblingSocket(socket, "admin"));
}

void Server::State::WatchDevice() {
  health =
      std::make_unique<HealthWatch>([engine = engine.get()] { return engine->Health(); },
                                    [this](const absl::Status& status) {
                                      server->GetHealthCheckService()->SetServingStatus(false);
                                      telemetry::Log(telemetry::LogLevel::kError, status.message());
                                    });
}

// Channelz is a plugin of every builder after its initialisation, so the admin server comes last.
absl::Status Server::State::StartAdmin(const std::string& path) {
  KVERN_ASSIGN_OR_RETURN(std::unique_ptr<SocketClaim> claim, SocketClaim::Take(path));
  claims.push_back(std::move(claim));
  grpc::channelz::experimental::InitChannelzService();
  grpc::ServerBuilder builder;
  std::vector<Listening> at = {{"unix:" + path, 0}};
  builder.AddListeningPort(at[0].address, grpc::InsecureServerCredentials(), &at[0].port);
  KVERN_ASSIGN_OR_RETURN(admin, Build(builder, at));
  return absl::OkStatus();
}

absl::Status Server::State::StartMetrics() {
  if (config.metrics_listen.empty()) return absl::OkStatus();
  telemetry::LevelsOptions levels;
  levels.sample = [engine = engine.get()] { return engine->Gauges(); };
  levels.limits = config.limits;
  levels.version = Version();
  levels.commit = Commit();
  KVERN_ASSIGN_OR_RETURN(
      exposer, telemetry::MetricsServer::Start(config.metrics_listen, metrics, std::move(levels)));
  return absl::OkStatus();
}

void Server::State::Stop() {
  // An open health Watch or idle stream would hold Shutdown until its deadline: keep it short.
  const auto deadline = std::chrono::system_clock::now() + std::chrono::milliseconds(500);
  for (grpc::Server* one : {server.get(), admin.get()}) {
    if (one != nullptr) one->Shutdown(deadline);
  }
}

Server::Server(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const Config& config) {
  KVERN_RETURN_IF_ERROR(CheckConfig(config));
  auto state = std::make_unique<State>();
  state->config = config;
  state->rpc_events = std::make_unique<BothEvents>(state->metrics.Rpc(), config.log_format);
  std::unique_ptr<Server> server(new Server(std::move(state)));
  KVERN_RETURN_IF_ERROR(server->state_->StartEngine());
  KVERN_RETURN_IF_ERROR(server->state_->StartServices());
  KVERN_RETURN_IF_ERROR(server->state_->StartMetrics());
  return server;
}

Server::~Server() {
  if (state_->engine != nullptr) state_->engine->Drain(absl::ZeroDuration());
  state_->health.reset();
  state_->Stop();
  state_->exposer.reset();
  state_->admin.reset();
  state_->server.reset();
  state_->broker.reset();
}

bool Server::Drain() {
  state_->server->GetHealthCheckService()->SetServingStatus(false);
  const bool finished = state_->engine->Drain(absl::Seconds(state_->config.limits.drain_seconds));
  state_->Stop();
  return finished;
}

std::vector<std::string> Server::Addresses() const {
  std::vector<std::string> addresses;
  for (const Listening& one : state_->listening) {
    const size_t colon = one.address.rfind(':');
    addresses.push_back(absl::EndsWith(one.address, ":0")
                            ? absl::StrCat(one.address.substr(0, colon), ":", one.port)
                            : one.address);
  }
  return addresses;
}

int Server::MetricsPort() const { return state_->exposer == nullptr ? 0 : state_->exposer->Port(); }

std::string Server::Summary() const {
  const engine::Engine& engine = *state_->engine;
  std::string line = absl::StrCat(
      "kvernd ", Version(), " (", Commit(), ") serves on ", absl::StrJoin(Addresses(), ", "),
      "; backend ", std::string(engine.BackendName()), "/", std::string(engine.InstructionSet()),
      ", ", ThreadsOf(state_->config.backend), " threads, store ",
      state_->config.limits.store_bytes >> 20, " MiB",
      state_->engine->Store().OnDevice() ? " in memory of the device" : "");
  if (!state_->backend_reason.empty()) absl::StrAppend(&line, " (", state_->backend_reason, ")");
  if (MetricsPort() != 0) absl::StrAppend(&line, "; metrics on port ", MetricsPort());
  return line;
}

}  // namespace kvern
