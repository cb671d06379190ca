// What all five services share.
#ifndef KVERN_SERVER_RPC_SERVICE_DEPS_H_
#define KVERN_SERVER_RPC_SERVICE_DEPS_H_

#include "server/engine/engine.h"
#include "server/engine/rpc_events.h"
#include "server/rpc/blocking_worker.h"
#include "server/rpc/byte_budget.h"
#include "server/rpc/rpc_scope.h"

namespace kvern::rpc {

// Not owned; outlives the services.
struct ServiceDeps {
  engine::Engine* engine = nullptr;
  engine::RpcEvents* events = nullptr;  // may be null
  BlockingWorker* worker = nullptr;     // for what is too long for gRPC's threads
  ByteBudget* import_bytes = nullptr;   // buffered artifacts of all calls together
  ByteBudget* decode_bytes = nullptr;   // decoded sequences of all calls together

  RpcScope Scope(engine::Rpc rpc, const grpc::CallbackServerContext& context) const {
    return RpcScope(events, rpc, context);
  }
  const Limits& GetLimits() const { return engine->GetLimits(); }
};

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_SERVICE_DEPS_H_
