// Read-only answers, made from the tables that the server itself runs on.
#include "server/rpc/server_service.h"

#include <utility>

#include "absl/time/clock.h"
#include "server/memory/limits.h"
#include "server/rpc/stages_to_proto.h"

namespace kvern::rpc {

ServerService::ServerService(const ServiceDeps& deps, ServerFacts facts)
    : deps_(deps), facts_(std::move(facts)) {}

grpc::ServerUnaryReactor* ServerService::GetServerInfo(grpc::CallbackServerContext* context,
                                                       const v1::GetServerInfoRequest*,
                                                       v1::GetServerInfoResponse* response) {
  RpcScope scope = deps_.Scope(engine::Rpc::kGetServerInfo, *context);
  // The broker is a Unix socket: over TCP its address is of no use and nobody's business.
  const bool on_unix_socket = scope.Peer() == "unix";
  return RunUnary(context, std::move(scope), [&] {
    response->set_version(facts_.version);
    response->set_commit(facts_.commit);
    response->set_backend(std::string(deps_.engine->BackendName()));
    response->set_instruction_set(std::string(deps_.engine->InstructionSet()));
    response->set_threads(facts_.threads);
    response->set_uptime_seconds(absl::ToInt64Seconds(absl::Now() - facts_.started));
    for (const LimitField& limit : LimitFields()) {
      (*response->mutable_limits())[limit.flag] = deps_.GetLimits().*limit.field;
    }
    if (const std::optional<DeviceFacts> device = deps_.engine->Device()) {
      v1::Device* out = response->mutable_device();
      out->set_name(device->name);
      out->set_uuid(device->uuid);
      out->set_driver(device->driver);
      out->set_memory_bytes(device->memory_bytes);
      out->set_reserved_bytes(device->reserved_bytes);
      out->set_busy_seconds(device->busy_seconds);
      out->set_healthy(deps_.engine->Health().ok());
    }
    response->set_backend_reason(facts_.backend_reason);
    if (on_unix_socket) response->set_broker_address(facts_.broker_address);
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* ServerService::ListStages(grpc::CallbackServerContext* context,
                                                    const v1::ListStagesRequest*,
                                                    v1::ListStagesResponse* response) {
  return RunUnary(context, deps_.Scope(engine::Rpc::kListStages, *context), [&] {
    StagesToProto(response);
    return absl::OkStatus();
  });
}

}  // namespace kvern::rpc
