// Connect first: only a socket that refuses is stale, and only a stale one is removed.
#include "server/memory/unix_listener.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace kvern::memory {
namespace {

constexpr mode_t kDirectoryMode = 0750;
constexpr mode_t kSocketMode = 0660;
constexpr mode_t kLockMode = 0600;
constexpr int kBacklog = 64;

std::string LockPath(const std::string& path) { return path + ".lock"; }

absl::Status Failed(const char* what) {
  return absl::InternalError(absl::StrCat("broker socket: ", what, ": ", std::strerror(errno)));
}
absl::Status Held() {
  return absl::FailedPreconditionError(
      "broker socket: a live server listens there, want a path of its own for each server");
}

absl::StatusOr<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path) ||
      path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("broker socket: got a path of ", path.size(),
                                                   " bytes, want 1 to ",
                                                   sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

absl::Status MakeParent(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos || slash == 0) return absl::OkStatus();
  if (mkdir(path.substr(0, slash).c_str(), kDirectoryMode) == 0 || errno == EEXIST) {
    return absl::OkStatus();
  }
  return Failed("its directory cannot be made");
}

bool LeadsTo(const std::string& path, const struct stat& file) {
  struct stat there;
  return lstat(path.c_str(), &there) == 0 && there.st_dev == file.st_dev &&
         there.st_ino == file.st_ino;
}

// A holder removes its lock file when it ends, so a lock counts only while the path leads to it.
absl::StatusOr<UniqueFd> TakeLock(const std::string& path) {
  constexpr int kAttempts = 16;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    UniqueFd lock(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, kLockMode));
    if (!lock.Valid()) return Failed("its lock file cannot be opened");
    if (flock(lock.Get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return Held();
      return Failed("its lock file cannot be locked");
    }
    struct stat file;
    if (fstat(lock.Get(), &file) == 0 && LeadsTo(path, file)) return lock;
  }
  return Held();
}

// Removes what a dead server left.
absl::Status ClearStale(const std::string& path, const sockaddr_un& address) {
  struct stat there;
  if (lstat(path.c_str(), &there) != 0) {
    return errno == ENOENT ? absl::OkStatus() : Failed("its path cannot be read");
  }
  if (!S_ISSOCK(there.st_mode)) {
    return absl::FailedPreconditionError(
        "broker socket: a file that is not a socket is there, want a free path");
  }
  const UniqueFd probe(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.Valid()) return Failed("no socket could be made");
  // Anything but a refusal (a full backlog, a socket of another type) is somebody alive.
  if (connect(probe.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno != ECONNREFUSED) {
    return Held();
  }
  if (unlink(path.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
  return Failed("a stale socket cannot be removed");
}

absl::StatusOr<UniqueFd> Listen(const std::string& path, const sockaddr_un& address) {
  UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.Valid()) return Failed("no socket could be made");
  // Before bind, so that the file never exists with a wider mode; after it, since umask narrows it.
  if (fchmod(listener.Get(), kSocketMode) != 0) return Failed("its mode cannot be set");
  if (bind(listener.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Failed("it cannot be bound");
  }
  if (chmod(path.c_str(), kSocketMode) == 0 && listen(listener.Get(), kBacklog) == 0) {
    return listener;
  }
  const absl::Status failed = Failed("it cannot listen");
  unlink(path.c_str());
  return failed;
}

}  // namespace

absl::StatusOr<std::unique_ptr<UnixListener>> UnixListener::Open(const std::string& path) {
  KVERN_ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  KVERN_RETURN_IF_ERROR(MakeParent(path));
  KVERN_ASSIGN_OR_RETURN(UniqueFd lock, TakeLock(LockPath(path)));
  // From here on its destructor cleans up.
  std::unique_ptr<UnixListener> listener(new UnixListener(path, std::move(lock), UniqueFd()));
  KVERN_RETURN_IF_ERROR(ClearStale(path, address));
  KVERN_ASSIGN_OR_RETURN(listener->socket_, Listen(path, address));
  struct stat file;
  if (lstat(path.c_str(), &file) != 0) return Failed("its path cannot be read");
  listener->device_ = file.st_dev;
  listener->inode_ = file.st_ino;
  return listener;
}

UnixListener::~UnixListener() {
  struct stat own = {};
  own.st_dev = device_;
  own.st_ino = inode_;
  if (inode_ != 0 && LeadsTo(path_, own)) unlink(path_.c_str());
  if (fstat(lock_.Get(), &own) == 0 && LeadsTo(LockPath(path_), own)) {
    unlink(LockPath(path_).c_str());
  }
}

}  // namespace kvern::memory
