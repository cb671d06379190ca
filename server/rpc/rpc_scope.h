// One call as its observers see it: OnStart when made, OnEnd when it ends.
#ifndef KVERN_SERVER_RPC_RPC_SCOPE_H_
#define KVERN_SERVER_RPC_RPC_SCOPE_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/engine/rpc_events.h"

namespace kvern::rpc {

class RpcScope {
 public:
  // `events` may be null.
  RpcScope(engine::RpcEvents* events, engine::Rpc rpc, const grpc::CallbackServerContext& context);
  RpcScope(RpcScope&&) = default;

  void SetRequestId(const std::string& request_id);
  void SetCompress(engine::CompressSummary summary) { end_.compress = std::move(summary); }
  const std::string& Peer() const { return end_.peer; }
  // Call once, from the thread that finishes the call.
  grpc::Status End(const absl::Status& status);

 private:
  engine::RpcEvents* events_;
  absl::Time start_;
  engine::RpcEnd end_;
};

// The caller's deadline, or `fallback` from now where it brought none.
absl::Time DeadlineOf(const grpc::CallbackServerContext& context, absl::Duration fallback);

// Runs a quick unary call on gRPC's thread. run() -> absl::Status.
template <class Run>
grpc::ServerUnaryReactor* RunUnary(grpc::CallbackServerContext* context, RpcScope scope,
                                   const Run& run) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(scope.End(run()));
  return reactor;
}

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_RPC_SCOPE_H_
