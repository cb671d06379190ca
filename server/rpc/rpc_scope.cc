// Every call reports its end exactly once, with the status that the wire carries.
#include "server/rpc/rpc_scope.h"

#include <chrono>
#include <utility>

#include "absl/time/clock.h"
#include "kernels/base/error_reason.h"
#include "server/rpc/field_path.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/peer.h"

namespace kvern::rpc {
namespace {

constexpr size_t kMaxRequestIdBytes = 128;

}  // namespace

RpcScope::RpcScope(engine::RpcEvents* events, engine::Rpc rpc,
                   const grpc::CallbackServerContext& context)
    : events_(events), start_(absl::Now()) {
  end_.rpc = rpc;
  end_.peer = PeerIdentity(context.peer());
  if (events_ != nullptr) events_->OnStart(rpc);
}

void RpcScope::SetRequestId(const std::string& request_id) {
  end_.request_id = std::string(CutUtf8(request_id, kMaxRequestIdBytes));
}

grpc::Status RpcScope::End(const absl::Status& status) {
  grpc::Status wire = ToGrpc(status);
  if (events_ == nullptr) return wire;
  end_.code = status.code();
  end_.reason = ReasonOf(status);
  end_.message = wire.error_message();
  end_.seconds = absl::ToDoubleSeconds(absl::Now() - start_);
  events_->OnEnd(end_);
  return wire;
}

absl::Time DeadlineOf(const grpc::CallbackServerContext& context, absl::Duration fallback) {
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::Now() + fallback;
  return absl::FromChrono(deadline);
}

}  // namespace kvern::rpc
