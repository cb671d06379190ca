// A listening AF_UNIX socket that never takes a live one's place (ruling 15).
#ifndef KVERN_SERVER_MEMORY_UNIX_LISTENER_H_
#define KVERN_SERVER_MEMORY_UNIX_LISTENER_H_

#include <sys/types.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/memory/unique_fd.h"

namespace kvern::memory {

class UnixListener {
 public:
  // SOCK_SEQPACKET, non-blocking, mode 0660; makes the parent directory with mode 0750 when absent.
  // A lock file `path`.lock, held while listening, orders servers that start together. Errors:
  // InvalidArgument (path too long); FailedPrecondition when a live server or a file that is not a
  // socket holds the path; Internal.
  static absl::StatusOr<std::unique_ptr<UnixListener>> Open(const std::string& path);
  // Unlinks the socket if the path still leads to this one, and the lock file.
  ~UnixListener();
  UnixListener(const UnixListener&) = delete;
  UnixListener& operator=(const UnixListener&) = delete;

  int Fd() const { return socket_.Get(); }

 private:
  UnixListener(std::string path, UniqueFd lock, UniqueFd socket)
      : path_(std::move(path)), lock_(std::move(lock)), socket_(std::move(socket)) {}
  const std::string path_;
  UniqueFd lock_;
  UniqueFd socket_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_UNIX_LISTENER_H_
