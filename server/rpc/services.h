// The five services of kvern.v1 over one engine, on gRPC's callback API.
#ifndef KVERN_SERVER_RPC_SERVICES_H_
#define KVERN_SERVER_RPC_SERVICES_H_

#include <memory>
#include <string>

#include "server/engine/engine.h"
#include "server/engine/rpc_events.h"

namespace grpc {
class ServerBuilder;
}

namespace kvern::rpc {

struct ServicesOptions {
  engine::Engine* engine = nullptr;     // not owned, outlives the services
  engine::RpcEvents* events = nullptr;  // not owned, may be null
  std::string version;
  std::string commit;
  std::string broker_address;  // empty: no broker beside this server
  std::string backend_reason;  // why `auto` chose as it did, and that the store is on the device
  int threads = 1;
};

// Must outlive the grpc::Server it is registered on.
class Services {
 public:
  explicit Services(ServicesOptions options);
  ~Services();
  Services(const Services&) = delete;
  Services& operator=(const Services&) = delete;

  // Registers all services and sets message and metadata limits from the engine's limits.
  void Register(grpc::ServerBuilder* builder);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_SERVICES_H_
