// A lock file decides who owns a path: it dies with its holder, which a socket file does not.
#include "server/main/listeners.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace kvern {
namespace {

// True when somebody accepts connections there.
bool IsLive(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  const bool live = connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  close(fd);
  return live;
}

absl::Status MakeDirectory(const std::string& path) {
  const std::filesystem::path directory = std::filesystem::path(path).parent_path();
  std::error_code error;
  if (std::filesystem::exists(directory, error)) return absl::OkStatus();
  std::filesystem::create_directories(directory, error);
  if (!error) {
    std::filesystem::permissions(directory, static_cast<std::filesystem::perms>(0750), error);
  }
  if (!error) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cannot make the directory ", directory.string(), ": ",
                                          error.message(), "; choose another with --listen"));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file.good() && text.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  }
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SocketClaim>> SocketClaim::Take(const std::string& path) {
  KVERN_RETURN_IF_ERROR(MakeDirectory(path));
  const std::string lock_path = path + ".lock";
  const int lock_fd = open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0640);
  if (lock_fd < 0) {
    return absl::InternalError(absl::StrCat("cannot open ", lock_path, ": ", std::strerror(errno)));
  }
  const bool locked = flock(lock_fd, LOCK_EX | LOCK_NB) == 0;
  if (!locked || IsLive(path)) {
    close(lock_fd);
    return absl::FailedPreconditionError(absl::StrCat(
        "another server listens on ", path, "; stop it, or choose another socket with --listen"));
  }
  unlink(path.c_str());
  return std::unique_ptr<SocketClaim>(new SocketClaim(path, lock_fd));
}

SocketClaim::~SocketClaim() {
  unlink(path_.c_str());
  unlink((path_ + ".lock").c_str());
  close(lock_fd_);
}

std::string SiblingSocket(const std::string& path, const std::string& what) {
  if (absl::EndsWith(path, ".sock")) {
    return absl::StrCat(path.substr(0, path.size() - 5), ".", what, ".sock");
  }
  return absl::StrCat(path, ".", what, ".sock");
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TcpCredentials(const TlsFiles& tls) {
  if (tls.cert.empty()) return grpc::InsecureServerCredentials();
  KVERN_ASSIGN_OR_RETURN(std::string cert, ReadFile(tls.cert));
  KVERN_ASSIGN_OR_RETURN(std::string key, ReadFile(tls.key));
  grpc::SslServerCredentialsOptions options(
      tls.client_ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                            : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_key_cert_pairs.push_back({std::move(key), std::move(cert)});
  if (!tls.client_ca.empty()) {
    KVERN_ASSIGN_OR_RETURN(options.pem_root_certs, ReadFile(tls.client_ca));
  }
  return grpc::SslServerCredentials(options);
}

}  // namespace kvern
