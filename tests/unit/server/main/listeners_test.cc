#include "server/main/listeners.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace kvern {
namespace {

std::string SocketPath(const std::string& name) {
  return testing::TempDir() + "kvern_listeners_" + name + "/k.sock";
}

int Bind(const std::string& path, bool listening) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  if (listening) {
    EXPECT_EQ(listen(fd, 1), 0);
  }
  return fd;
}

TEST(SocketClaim, IsRefusedWhileAnotherHoldsThePath) {
  const std::string path = SocketPath("held");
  auto first = SocketClaim::Take(path);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(SocketClaim::Take(path).status().code(), absl::StatusCode::kFailedPrecondition);
  first->reset();
  EXPECT_TRUE(SocketClaim::Take(path).ok());
}

TEST(SocketClaim, LeavesALiveForeignSocketAlone) {
  const std::string path = SocketPath("live");
  ASSERT_TRUE(SocketClaim::Take(path).ok());  // makes the directory
  const int fd = Bind(path, /*listening=*/true);
  EXPECT_EQ(SocketClaim::Take(path).status().code(), absl::StatusCode::kFailedPrecondition);
  struct stat info {};
  EXPECT_EQ(stat(path.c_str(), &info), 0);
  close(fd);
  unlink(path.c_str());
}

TEST(SocketClaim, RemovesASocketWhoseServerDied) {
  const std::string path = SocketPath("stale");
  ASSERT_TRUE(SocketClaim::Take(path).ok());
  close(Bind(path, /*listening=*/false));
  EXPECT_TRUE(SocketClaim::Take(path).ok());
}

TEST(SocketClaim, TakesAFullBacklogForALiveServer) {
  const std::string path = SocketPath("backlog");
  ASSERT_TRUE(SocketClaim::Take(path).ok());
  const int fd = Bind(path, /*listening=*/true);
  EXPECT_EQ(listen(fd, 0), 0);
  const int waiting = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  EXPECT_EQ(connect(waiting, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(SocketClaim::Take(path).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(std::filesystem::exists(path));
  close(waiting);
  close(fd);
  unlink(path.c_str());
}

TEST(SocketClaim, RefusesAFileThatIsNoSocketAndKeepsIt) {
  const std::string path = SocketPath("file");
  ASSERT_TRUE(SocketClaim::Take(path).ok());
  std::ofstream(path) << "precious";
  EXPECT_EQ(SocketClaim::Take(path).status().code(), absl::StatusCode::kFailedPrecondition);
  std::string text;
  std::ifstream(path) >> text;
  EXPECT_EQ(text, "precious");
  EXPECT_FALSE(std::filesystem::exists(path + ".lock"));
  unlink(path.c_str());
}

TEST(SiblingSocket, StandsBesideTheMainOne) {
  EXPECT_EQ(SiblingSocket("/run/kvern/kvern.sock", "broker"), "/run/kvern/kvern.broker.sock");
  EXPECT_EQ(SiblingSocket("/run/k", "admin"), "/run/k.admin.sock");
}

}  // namespace
}  // namespace kvern
