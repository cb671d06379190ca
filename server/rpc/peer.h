// Who called, as far as gRPC tells.
#ifndef KVERN_SERVER_RPC_PEER_H_
#define KVERN_SERVER_RPC_PEER_H_

#include <string>

#include "absl/strings/string_view.h"

namespace kvern::rpc {

// "unix" for every peer of a Unix socket: gRPC does not expose SO_PEERCRED, and who may open the
// socket file is one principal. Over TCP the address without its port, which changes with every
// connection, so that a replay after a reconnect is recognised. "inproc" inside the process, which
// gRPC calls unknown.
std::string PeerIdentity(absl::string_view grpc_peer);

}  // namespace kvern::rpc

#endif  // KVERN_SERVER_RPC_PEER_H_
