// Real sockets, real descriptors: good clients are served whatever bad ones do.
#include "server/memory/handle_broker.h"

#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "server/memory/unique_fd.h"
#include "tests/unit/server/memory/broker_fixture.h"
#include "tests/unit/server/memory/memfd.h"

namespace kvern::memory {
namespace {

constexpr auto kInvalid = static_cast<uint32_t>(absl::StatusCode::kInvalidArgument);
constexpr auto kExhausted = static_cast<uint32_t>(absl::StatusCode::kResourceExhausted);

TEST_F(HandleBrokerTest, AnswersAnIdThatFindsTheMemory) {
  Start();
  Client client(options_.path);
  ASSERT_TRUE(client.Connected());
  const UniqueFd fd(MakeMemfd(5000, F_SEAL_SHRINK));
  ASSERT_EQ(pwrite(fd.Get(), "kv", 2, 100), 2);
  client.Send("KVA1", {fd.Get()});
  const Reply reply = client.Receive();
  EXPECT_EQ(reply.status, 0u);
  const auto region = attachments_.Find(reply.id);
  ASSERT_TRUE(region.ok());
  EXPECT_EQ((*region)->SizeBytes(), 5000);
  EXPECT_EQ((*region)->Owner(), getuid());
  EXPECT_EQ(std::memcmp((*region)->Data() + 100, "kv", 2), 0);
}

TEST_F(HandleBrokerTest, MakesSocketAndDirectoryForTheGroupOnly) {
  Start();
  struct stat file;
  ASSERT_EQ(stat(options_.path.c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 07777, 0660u);
  ASSERT_EQ(stat((directory_ + "/run").c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0027, 0u);
}

TEST_F(HandleBrokerTest, DropsAttachmentsWhenTheConnectionEnds) {
  Start();
  AttachmentId id;
  {
    Client client(options_.path);
    id = client.Attach(4096).id;
    client.Attach(4096);
    EXPECT_EQ(attachments_.Count(), 2);
  }
  WaitForClosed(1);
  EXPECT_EQ(attachments_.Count(), 0);
  EXPECT_FALSE(attachments_.Find(id).ok());
}

TEST_F(HandleBrokerTest, RefusesAnUnsealedMemfdAndGoesOn) {
  Start();
  Client client(options_.path);
  const UniqueFd fd(MakeMemfd(4096, 0));
  client.Send("KVA1", {fd.Get()});
  const Reply refused = client.Receive();
  EXPECT_EQ(refused.status, kInvalid);
  EXPECT_EQ(refused.id, AttachmentId{});
  EXPECT_EQ(client.Attach(4096).status, 0u);
}

TEST_F(HandleBrokerTest, EndsTheConnectionAfterAPacketOfAnotherForm) {
  Start();
  const UniqueFd fd(MakeMemfd(4096, F_SEAL_SHRINK));
  struct Case {
    std::string payload;
    std::vector<int> fds;
  };
  const std::vector<Case> cases = {
      {"KVA1", {}},
      {"KVA2", {fd.Get()}},
      {"KVA", {fd.Get()}},
      {"KVA1x", {fd.Get()}},
      {std::string(60000, 'x'), {fd.Get()}},
      {"KVA1", {fd.Get(), fd.Get()}},
      {"KVA1", std::vector<int>(16, fd.Get())},
      {DevicePacket(0, 16), {}},
      {DevicePacket(0, 16), {fd.Get(), fd.Get()}},
      {DevicePacket(0, 16).substr(0, 63), {fd.Get()}},
      {DevicePacket(0, 16) + "x", {fd.Get()}},
      {DevicePacket(0, 16, "GPU-01234567-89ab-cdef-0123-456789abcdeg"), {fd.Get()}},
      {DevicePacket(0, 16).replace(47, 1, "\1"), {fd.Get()}},
      {DevicePacket(0, 16).replace(0, 4, "KVA1"), {fd.Get()}},
  };
  for (const Case& bad : cases) {
    Client client(options_.path);
    client.Send(bad.payload, bad.fds);
    EXPECT_EQ(client.Receive().status, kInvalid);
    EXPECT_TRUE(client.Receive().ended);
  }
  EXPECT_EQ(attachments_.Count(), 0);
  Client good(options_.path);
  EXPECT_EQ(good.Attach(4096).status, 0u);
}

TEST_F(HandleBrokerTest, KeepsNoDescriptors) {
  Start();
  const auto open_now = [] {
    int count = 0;
    for (int fd = 0; fd < 256; ++fd) count += fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
    return count;
  };
  Client client(options_.path);
  client.Attach(4096);
  const int before = open_now();
  const UniqueFd unsealed(MakeMemfd(4096, 0));
  for (int i = 0; i < 20; ++i) {
    client.Attach(4096);
    client.Send("KVA1", {unsealed.Get()});
    client.Receive();
    Client bad(options_.path);
    bad.Send("KVA1", std::vector<int>(16, unsealed.Get()));
    bad.Receive();
    EXPECT_TRUE(bad.Receive().ended);
  }
  EXPECT_EQ(open_now(), before + 1);
}

TEST_F(HandleBrokerTest, LimitsAttachmentsPerConnection) {
  options_.max_attachments_per_connection = 2;
  Start();
  Client client(options_.path);
  EXPECT_EQ(client.Attach(4096).status, 0u);
  EXPECT_EQ(client.Attach(4096).status, 0u);
  for (int i = 0; i < 18; ++i) EXPECT_EQ(client.Attach(4096).status, kExhausted);
  EXPECT_EQ(attachments_.Count(), 2);
}

TEST_F(HandleBrokerTest, LimitsConnections) {
  options_.max_connections = 2;
  Start();
  Client first(options_.path);
  {
    Client second(options_.path);
    EXPECT_EQ(first.Attach(4096).status, 0u);
    EXPECT_EQ(second.Attach(4096).status, 0u);
    for (int i = 0; i < 18; ++i) {
      Client third(options_.path);
      EXPECT_EQ(third.Receive().status, kExhausted);
      EXPECT_TRUE(third.Receive().ended);
    }
  }
  WaitForClosed(1);
  Client fourth(options_.path);
  EXPECT_EQ(fourth.Attach(4096).status, 0u);
}

TEST_F(HandleBrokerTest, RefusesAPeerOfAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  Start();
  ASSERT_EQ(chmod(directory_.c_str(), 0755), 0);
  ASSERT_EQ(chmod((directory_ + "/run").c_str(), 0755), 0);
  ASSERT_EQ(chmod(options_.path.c_str(), 0666), 0);
  // The system call changes this thread alone, the library's function all of them.
  constexpr uid_t kNobody = 65534;
  ASSERT_EQ(syscall(SYS_setresuid, -1, kNobody, -1), 0);
  Client client(options_.path);
  ASSERT_EQ(syscall(SYS_setresuid, -1, 0, -1), 0);
  ASSERT_TRUE(client.Connected());
  EXPECT_EQ(client.Receive().status, static_cast<uint32_t>(absl::StatusCode::kPermissionDenied));
  EXPECT_TRUE(client.Receive().ended);
}

TEST_F(HandleBrokerTest, ServesOthersBesideAPeerThatNeverReads) {
  Start();
  Client flood(options_.path);
  const UniqueFd unsealed(MakeMemfd(4096, 0));
  for (int i = 0; i < 2000; ++i) flood.Send("KVA1", {unsealed.Get()});
  Client good(options_.path);
  EXPECT_EQ(good.Attach(4096).status, 0u);
}

TEST_F(HandleBrokerTest, NeverTakesALiveSocket) {
  Start();
  AttachmentTable others;
  EXPECT_EQ(HandleBroker::Start(options_, &others).status().code(),
            absl::StatusCode::kFailedPrecondition);
  Client client(options_.path);
  EXPECT_EQ(client.Attach(4096).status, 0u);
  EXPECT_EQ(attachments_.Count(), 1);
}

// A server that knows nothing of lock files, here with a socket of another type.
TEST_F(HandleBrokerTest, NeverTakesALiveSocketOfAStranger) {
  ASSERT_EQ(mkdir((directory_ + "/run").c_str(), 0750), 0);
  const UniqueFd stranger(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, options_.path.data(), options_.path.size());
  ASSERT_EQ(bind(stranger.Get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(stranger.Get(), 1), 0);
  EXPECT_EQ(HandleBroker::Start(options_, &attachments_).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(access(options_.path.c_str(), F_OK), 0);
}

TEST_F(HandleBrokerTest, ReplacesAStaleSocket) {
  ASSERT_EQ(mkdir((directory_ + "/run").c_str(), 0750), 0);
  {
    const UniqueFd dead(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, options_.path.data(), options_.path.size());
    ASSERT_EQ(bind(dead.Get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  Start();
  Client client(options_.path);
  EXPECT_EQ(client.Attach(4096).status, 0u);
}

TEST_F(HandleBrokerTest, NeverRemovesAFileThatIsNoSocket) {
  ASSERT_EQ(mkdir((directory_ + "/run").c_str(), 0750), 0);
  close(open(options_.path.c_str(), O_CREAT | O_WRONLY, 0600));
  EXPECT_EQ(HandleBroker::Start(options_, &attachments_).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(access(options_.path.c_str(), F_OK), 0);
}

TEST_F(HandleBrokerTest, RefusesPathsThatNoSocketCanHave) {
  options_.path = directory_ + "/" + std::string(120, 'x');
  EXPECT_EQ(HandleBroker::Start(options_, &attachments_).status().code(),
            absl::StatusCode::kInvalidArgument);
  options_.path = "";
  EXPECT_EQ(HandleBroker::Start(options_, &attachments_).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(HandleBrokerTest, EndsConnectionsAndRemovesItsSocketWhenItEnds) {
  Start();
  Client client(options_.path);
  EXPECT_EQ(client.Attach(4096).status, 0u);
  broker_.reset();
  EXPECT_TRUE(client.Receive().ended);
  EXPECT_EQ(attachments_.Count(), 0);
  EXPECT_NE(access(options_.path.c_str(), F_OK), 0);
  Start();  // the path is free again
}

TEST_F(HandleBrokerTest, LeavesAForeignSocketAtItsPathAlone) {
  Start();
  ASSERT_EQ(unlink(options_.path.c_str()), 0);
  close(open(options_.path.c_str(), O_CREAT | O_WRONLY, 0600));
  broker_.reset();
  EXPECT_EQ(access(options_.path.c_str(), F_OK), 0);
}

}  // namespace
}  // namespace kvern::memory
