// gRPC binds where it is told; who may tell it is settled before.
#include "server/main/listeners.h"

#include <unistd.h>

#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace kvern {
namespace {

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
  KVERN_ASSIGN_OR_RETURN(std::unique_ptr<memory::SocketPath> claim,
                         memory::SocketPath::Claim(path));
  return std::unique_ptr<SocketClaim>(new SocketClaim(std::move(claim)));
}

SocketClaim::~SocketClaim() { unlink(claim_->Path().c_str()); }

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
