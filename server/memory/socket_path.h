// The right to a Unix socket path, which one server at a time holds (ruling 15).
#ifndef KVERN_SERVER_MEMORY_SOCKET_PATH_H_
#define KVERN_SERVER_MEMORY_SOCKET_PATH_H_

#include <sys/stat.h>
#include <sys/un.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "server/memory/unique_fd.h"

namespace kvern::memory {

class SocketPath {
 public:
  // Holds the lock file `path`.lock, then removes the socket that a dead server left; makes the
  // directory with mode 0750 when absent. Errors: InvalidArgument (path too long);
  // FailedPrecondition when a live server or a file that is not a socket holds the path; Internal.
  static absl::StatusOr<std::unique_ptr<SocketPath>> Claim(const std::string& path);
  // Removes the lock file if it is still this one.
  ~SocketPath();
  SocketPath(const SocketPath&) = delete;
  SocketPath& operator=(const SocketPath&) = delete;

  const std::string& Path() const { return path_; }
  const sockaddr_un& Address() const { return address_; }
  // Whether the path, not followed, leads to the file that `file` describes.
  bool LeadsTo(const struct stat& file) const;

 private:
  SocketPath(std::string path, const sockaddr_un& address, UniqueFd lock)
      : path_(std::move(path)), address_(address), lock_(std::move(lock)) {}
  const std::string path_;
  const sockaddr_un address_;
  const UniqueFd lock_;
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_SOCKET_PATH_H_
