// Binds where the claim says that nobody is, and unlinks only what it bound.
#include "server/memory/unix_listener.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace kvern::memory {
namespace {

constexpr mode_t kSocketMode = 0660;
constexpr int kBacklog = 64;

absl::Status Failed(const char* what) {
  return absl::InternalError(absl::StrCat("broker socket: ", what, ": ", std::strerror(errno)));
}

absl::StatusOr<UniqueFd> Listen(const SocketPath& claim) {
  UniqueFd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.Valid()) return Failed("no socket could be made");
  // Before bind, so that the file never exists with a wider mode; after it, since umask narrows it.
  if (fchmod(listener.Get(), kSocketMode) != 0) return Failed("its mode cannot be set");
  const sockaddr_un& address = claim.Address();
  if (bind(listener.Get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Failed("it cannot be bound");
  }
  const char* path = claim.Path().c_str();
  if (chmod(path, kSocketMode) == 0 && listen(listener.Get(), kBacklog) == 0) return listener;
  const absl::Status failed = Failed("it cannot listen");
  unlink(path);
  return failed;
}

}  // namespace

absl::StatusOr<std::unique_ptr<UnixListener>> UnixListener::Open(const std::string& path) {
  KVERN_ASSIGN_OR_RETURN(std::unique_ptr<SocketPath> claim, SocketPath::Claim(path));
  KVERN_ASSIGN_OR_RETURN(UniqueFd socket, Listen(*claim));
  struct stat file;
  if (lstat(path.c_str(), &file) != 0) return Failed("its path cannot be read");
  return std::unique_ptr<UnixListener>(new UnixListener(std::move(claim), std::move(socket), file));
}

UnixListener::~UnixListener() {
  if (claim_->LeadsTo(file_)) unlink(claim_->Path().c_str());
}

}  // namespace kvern::memory
