// Sockets of one server: where to listen, with which credentials, and how to be the only one there.
#ifndef KVERN_SERVER_MAIN_LISTENERS_H_
#define KVERN_SERVER_MAIN_LISTENERS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/security/server_credentials.h"
#include "server/main/config.h"

namespace kvern {

// The right to a Unix socket path: gRPC would unlink and take over a live server's socket, so the
// path is claimed first. Holds a lock file beside it; releases and removes both at the end.
class SocketClaim {
 public:
  // Creates the directory (0750) where absent. Errors: FailedPrecondition when a live server holds
  // the path; Internal.
  static absl::StatusOr<std::unique_ptr<SocketClaim>> Take(const std::string& path);
  ~SocketClaim();
  SocketClaim(const SocketClaim&) = delete;
  SocketClaim& operator=(const SocketClaim&) = delete;

 private:
  SocketClaim(std::string path, int lock_fd) : path_(std::move(path)), lock_fd_(lock_fd) {}
  const std::string path_;
  const int lock_fd_;
};

// "/run/kvern/kvern.sock", "broker" -> "/run/kvern/kvern.broker.sock" (ruling 15).
std::string SiblingSocket(const std::string& path, const std::string& what);

// Credentials of a TCP listener. Errors: InvalidArgument when a file cannot be read.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TcpCredentials(const TlsFiles& tls);

}  // namespace kvern

#endif  // KVERN_SERVER_MAIN_LISTENERS_H_
