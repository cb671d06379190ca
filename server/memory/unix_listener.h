// A listening AF_UNIX socket that never takes a live one's place (ruling 15).
#ifndef KVERN_SERVER_MEMORY_UNIX_LISTENER_H_
#define KVERN_SERVER_MEMORY_UNIX_LISTENER_H_

#include <sys/stat.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "server/memory/socket_path.h"
#include "server/memory/unique_fd.h"

namespace kvern::memory {

class UnixListener {
 public:
  // SOCK_SEQPACKET, non-blocking, mode 0660. Errors: of SocketPath::Claim; Internal.
  static absl::StatusOr<std::unique_ptr<UnixListener>> Open(const std::string& path);
  // Unlinks the socket if the path still leads to this one, and gives up the claim.
  ~UnixListener();
  UnixListener(const UnixListener&) = delete;
  UnixListener& operator=(const UnixListener&) = delete;

  int Fd() const { return socket_.Get(); }

 private:
  UnixListener(std::unique_ptr<SocketPath> claim, UniqueFd socket, const struct stat& file)
      : claim_(std::move(claim)), socket_(std::move(socket)), file_(file) {}
  const std::unique_ptr<SocketPath> claim_;
  const UniqueFd socket_;
  const struct stat file_;  // what the path led to when bound
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_UNIX_LISTENER_H_
