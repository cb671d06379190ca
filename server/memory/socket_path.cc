// Connect first: only a socket that refuses is stale, and only a stale one is removed.
#include "server/memory/socket_path.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>

#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace kvern::memory {
namespace {

constexpr mode_t kDirectoryMode = 0750;
constexpr mode_t kLockMode = 0600;

std::string LockPath(const std::string& path) { return path + ".lock"; }

absl::Status Failed(const std::string& path, const char* what) {
  return absl::InternalError(absl::StrCat("socket ", path, ": ", what, ": ", std::strerror(errno)));
}
absl::Status Held(const std::string& path) {
  return absl::FailedPreconditionError(absl::StrCat(
      "another server listens on ", path, "; stop it, or choose another socket with --listen"));
}

absl::StatusOr<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path) ||
      path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(
        "socket: got a path of ", path.size(), " bytes, want 1 to ", sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

absl::Status MakeParent(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  if (parent.empty()) return absl::OkStatus();
  std::error_code error;
  if (!parent.parent_path().empty()) {
    std::filesystem::create_directories(parent.parent_path(), error);
  }
  if (error) errno = error.value();
  if (!error && (mkdir(parent.c_str(), kDirectoryMode) == 0 || errno == EEXIST)) {
    return absl::OkStatus();
  }
  return Failed(path, "its directory cannot be made");
}

bool IsFileAt(const std::string& path, const struct stat& file) {
  struct stat there;
  return lstat(path.c_str(), &there) == 0 && there.st_dev == file.st_dev &&
         there.st_ino == file.st_ino;
}

// A holder removes its lock file when it ends, so a lock counts only while the path leads to it.
absl::StatusOr<UniqueFd> TakeLock(const std::string& path) {
  constexpr int kAttempts = 16;
  const std::string lock_path = LockPath(path);
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    UniqueFd lock(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, kLockMode));
    if (!lock.Valid()) return Failed(path, "its lock file cannot be opened");
    if (flock(lock.Get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return Held(path);
      return Failed(path, "its lock file cannot be locked");
    }
    struct stat file;
    if (fstat(lock.Get(), &file) == 0 && IsFileAt(lock_path, file)) return lock;
  }
  return Held(path);
}

// Removes what a dead server left.
absl::Status ClearStale(const std::string& path, const sockaddr_un& address) {
  struct stat there;
  if (lstat(path.c_str(), &there) != 0) {
    return errno == ENOENT ? absl::OkStatus() : Failed(path, "its path cannot be read");
  }
  if (!S_ISSOCK(there.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("socket ", path, ": got a file that is not a socket, want a free path"));
  }
  const UniqueFd probe(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.Valid()) return Failed(path, "no socket could be made");
  // Anything but a refusal (a full backlog, a socket of another type) is somebody alive.
  if (connect(probe.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno != ECONNREFUSED) {
    return Held(path);
  }
  if (unlink(path.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
  return Failed(path, "a stale socket cannot be removed");
}

}  // namespace

absl::StatusOr<std::unique_ptr<SocketPath>> SocketPath::Claim(const std::string& path) {
  KVERN_ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  KVERN_RETURN_IF_ERROR(MakeParent(path));
  KVERN_ASSIGN_OR_RETURN(UniqueFd lock, TakeLock(path));
  // From here on its destructor cleans up.
  std::unique_ptr<SocketPath> claim(new SocketPath(path, address, std::move(lock)));
  KVERN_RETURN_IF_ERROR(ClearStale(path, address));
  return claim;
}

SocketPath::~SocketPath() {
  struct stat own;
  if (fstat(lock_.Get(), &own) == 0 && IsFileAt(LockPath(path_), own)) {
    unlink(LockPath(path_).c_str());
  }
}

bool SocketPath::LeadsTo(const struct stat& file) const { return IsFileAt(path_, file); }

}  // namespace kvern::memory
