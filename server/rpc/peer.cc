// gRPC's peer URI ("ipv6:%5B::1%5D:50051") cut down to what stays the same between connections.
#include "server/rpc/peer.h"

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"

namespace kvern::rpc {

std::string PeerIdentity(absl::string_view grpc_peer) {
  if (absl::StartsWith(grpc_peer, "unix")) return "unix";
  if (grpc_peer == "unknown") return "inproc";
  absl::string_view address = grpc_peer;
  if (!absl::ConsumePrefix(&address, "ipv4:") && !absl::ConsumePrefix(&address, "ipv6:")) {
    return std::string(grpc_peer.substr(0, grpc_peer.find(':')));
  }
  const size_t colon = address.rfind(':');
  if (colon != absl::string_view::npos) address = address.substr(0, colon);
  return absl::StrReplaceAll(address, {{"%5B", "["}, {"%5D", "]"}, {"%25", "%"}});
}

}  // namespace kvern::rpc
