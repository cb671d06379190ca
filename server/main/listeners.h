// Sockets of one server: where to listen, with which credentials, and how to be the only one there.
#ifndef KVERN_SERVER_MAIN_LISTENERS_H_
#define KVERN_SERVER_MAIN_LISTENERS_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "grpcpp/security/server_credentials.h"
#include "server/main/config.h"
#include "server/memory/socket_path.h"

namespace kvern {

// The right to a Unix socket path: gRPC would unlink and take over a live server's socket, so the
// path is claimed first. Removes the socket and gives up the claim at the end.
class SocketClaim {
 public:
  // Errors: of memory::SocketPath::Claim.
  static absl::StatusOr<std::unique_ptr<SocketClaim>> Take(const std::string& path);
  ~SocketClaim();
  SocketClaim(const SocketClaim&) = delete;
  SocketClaim& operator=(const SocketClaim&) = delete;

 private:
  explicit SocketClaim(std::unique_ptr<memory::SocketPath> claim) : claim_(std::move(claim)) {}
  const std::unique_ptr<memory::SocketPath> claim_;
};

// "/run/kvern/kvern.sock", "broker" -> "/run/kvern/kvern.broker.sock" (ruling 15).
std::string SiblingSocket(const std::string& path, const std::string& what);

// Credentials of a TCP listener. Errors: InvalidArgument when a file cannot be read.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TcpCredentials(const TlsFiles& tls);

}  // namespace kvern

#endif  // KVERN_SERVER_MAIN_LISTENERS_H_
