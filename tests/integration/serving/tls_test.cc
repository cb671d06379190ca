// TCP listeners: in the clear on loopback, under TLS, and under TLS with certificates on both ends.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/cpp/client.h"
#include "tests/integration/hostile/raw_call.h"
#include "tests/support/server_process.h"

namespace kvern::serving {
namespace {

using support::RunCommand;
using support::ServerProcess;
using testing::HasSubstr;

constexpr char kInfo[] = "/kvern.v1.ServerService/GetServerInfo";

// The address behind port 0, from the line that says that it serves.
std::string TcpAddress(ServerProcess* server) {
  const std::string log = server->Log();
  const size_t at = log.find("127.0.0.1:");
  return log.substr(at, log.find_first_of(";, \n", at) - at);
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Two authorities, each with a certificate for 127.0.0.1 that it signed.
class Certificates {
 public:
  Certificates() : directory_(testing::TempDir() + "/kvern-tls-" + std::to_string(getpid())) {
    std::filesystem::create_directories(directory_);
    std::ofstream(Path("san")) << "subjectAltName=IP:127.0.0.1,DNS:localhost\n";
    for (const std::string authority : {"ours", "theirs"}) {
      Run({"req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
           "-days", "2", "-subj", "/CN=" + authority, "-keyout", Path(authority + "-ca.key"),
           "-out", Path(authority + "-ca.pem")});
      for (const std::string owner : {"server", "client"}) {
        const std::string name = authority + "-" + owner;
        Run({"req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
             "/CN=" + owner, "-keyout", Path(name + ".key"), "-out", Path(name + ".csr")});
        Run({"x509", "-req", "-days", "2", "-in", Path(name + ".csr"), "-CA",
             Path(authority + "-ca.pem"), "-CAkey", Path(authority + "-ca.key"), "-CAcreateserial",
             "-extfile", Path("san"), "-out", Path(name + ".pem")});
      }
    }
  }
  ~Certificates() {
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }
  std::string Path(const std::string& name) const { return directory_ + "/" + name; }

 private:
  static void Run(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "/usr/bin/openssl");
    const auto output = RunCommand(arguments);
    EXPECT_EQ(output.exit_code, 0) << output.err;
  }
  std::string directory_;
};

class Tls : public testing::Test {
 protected:
  static void SetUpTestSuite() { certificates_ = new Certificates; }
  static void TearDownTestSuite() { delete certificates_; }

  void StartWith(std::vector<std::string> flags) {
    flags.insert(flags.end(), {"--listen", "127.0.0.1:0", "--tls-cert", Path("ours-server.pem"),
                               "--tls-key", Path("ours-server.key")});
    server_ = ServerProcess::Start(flags);
    ASSERT_NE(server_, nullptr);
    address_ = TcpAddress(server_.get());
  }
  static std::string Path(const std::string& name) { return certificates_->Path(name); }
  // One call with these PEM files; empty names send none.
  grpc::StatusCode CallWith(const std::string& ca, const std::string& owner) const {
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = ReadFile(Path(ca + "-ca.pem"));
    if (!owner.empty()) {
      options.pem_cert_chain = ReadFile(Path(owner + ".pem"));
      options.pem_private_key = ReadFile(Path(owner + ".key"));
    }
    const auto channel = grpc::CreateChannel(address_, grpc::SslCredentials(options));
    return hostile::RawCall(channel, kInfo, "").status.error_code();
  }
  grpc::StatusCode CallInTheClear() const {
    const auto channel = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
    return hostile::RawCall(channel, kInfo, "").status.error_code();
  }

  static inline const Certificates* certificates_ = nullptr;
  std::unique_ptr<ServerProcess> server_;
  std::string address_;
};

TEST(Tcp, OnLoopbackServesAndNamesNoBroker) {
  const auto server = ServerProcess::Start({"--listen", "127.0.0.1:0"});
  ASSERT_NE(server, nullptr);
  const auto tcp = client::Client::Connect(TcpAddress(server.get()));
  ASSERT_TRUE(tcp.ok()) << tcp.status();
  EXPECT_TRUE(tcp->Ping().ok());
  const auto info = tcp->GetServerInfo();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->broker_address(), "");
  const auto local = client::Client::Connect(server->Address());
  ASSERT_TRUE(local.ok()) << local.status();
  EXPECT_THAT(local->GetServerInfo()->broker_address(), HasSubstr("kvern.broker.sock"));
}

TEST(Tcp, BeyondLoopbackNeedsTlsOrTheWordInsecure) {
  const std::string kvernd = support::BinaryPath("kvernd");
  const auto refused = RunCommand({kvernd, "--listen", "0.0.0.0:0", "--metrics-listen="});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, HasSubstr("--tls-cert"));
  const auto taken = RunCommand({kvernd, "--listen", "0.0.0.0:0", "--insecure", "--check-config"});
  EXPECT_EQ(taken.exit_code, 0) << taken.err;
}

TEST_F(Tls, ServesThoseWhoTrustItAndNobodyInTheClear) {
  StartWith({});
  EXPECT_EQ(CallWith("ours", ""), grpc::StatusCode::OK);
  EXPECT_EQ(CallWith("theirs", ""), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(CallInTheClear(), grpc::StatusCode::UNAVAILABLE);
  client::ClientOptions options;
  options.tls.ca = Path("ours-ca.pem");
  const auto client = client::Client::Connect(address_, options);
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE(client->GetServerInfo().ok());
  // The Unix socket stays as it is.
  EXPECT_TRUE(client::Client::Connect(server_->Address())->Ping().ok());
}

TEST_F(Tls, WithAClientAuthorityServesOnlyThoseItSigned) {
  StartWith({"--tls-client-ca", Path("ours-ca.pem")});
  EXPECT_EQ(CallWith("ours", "ours-client"), grpc::StatusCode::OK);
  EXPECT_EQ(CallWith("ours", ""), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(CallWith("ours", "theirs-client"), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(CallInTheClear(), grpc::StatusCode::UNAVAILABLE);
  client::ClientOptions options;
  options.tls = {Path("ours-ca.pem"), Path("ours-client.pem"), Path("ours-client.key")};
  const auto client = client::Client::Connect(address_, options);
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE(client->Ping().ok());
  EXPECT_TRUE(client::Client::Connect(server_->Address())->Ping().ok());
}

TEST_F(Tls, WithAKeyOfAnotherCertificateRefusesToStart) {
  const auto output = RunCommand({support::BinaryPath("kvernd"), "--listen", "127.0.0.1:0",
                                  "--metrics-listen=", "--tls-cert", Path("ours-server.pem"),
                                  "--tls-key", Path("theirs-server.key")});
  EXPECT_EQ(output.exit_code, 1);
  EXPECT_NE(output.err, "");
}

}  // namespace
}  // namespace kvern::serving
