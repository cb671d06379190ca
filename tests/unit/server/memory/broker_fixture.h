// A broker on a socket of its own, and a raw client of it.
#ifndef KVERN_TESTS_UNIT_SERVER_MEMORY_BROKER_FIXTURE_H_
#define KVERN_TESTS_UNIT_SERVER_MEMORY_BROKER_FIXTURE_H_

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "server/memory/handle_broker.h"
#include "server/memory/unique_fd.h"
#include "tests/unit/server/memory/fake_device.h"
#include "tests/unit/server/memory/memfd.h"

namespace kvern::memory {

struct Reply {
  bool ended = false;
  uint32_t status = 0;
  AttachmentId id = {};
};

class Client {
 public:
  explicit Client(const std::string& path)
      : socket_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path.data(), path.size());
    connected_ =
        connect(socket_.Get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  bool Connected() const { return connected_; }

  void Send(const std::string& payload, const std::vector<int>& fds) {
    alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))] = {};
    iovec buffer = {const_cast<char*>(payload.data()), payload.size()};
    msghdr message = {};
    message.msg_iov = &buffer;
    message.msg_iovlen = 1;
    if (!fds.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
      cmsghdr* part = CMSG_FIRSTHDR(&message);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      std::memcpy(CMSG_DATA(part), fds.data(), fds.size() * sizeof(int));
    }
    sendmsg(socket_.Get(), &message, MSG_NOSIGNAL);
  }

  Reply Receive() {
    uint8_t bytes[64];
    const ssize_t size = recv(socket_.Get(), bytes, sizeof(bytes), 0);
    Reply reply;
    reply.ended = size <= 0;
    if (reply.ended) return reply;
    EXPECT_EQ(size, 24);
    EXPECT_EQ(std::memcmp(bytes, "KVA1", 4), 0);
    std::memcpy(&reply.status, bytes + 4, 4);
    std::memcpy(reply.id.data(), bytes + 8, 16);
    return reply;
  }

  Reply Attach(int64_t size_bytes) {
    const UniqueFd fd(MakeMemfd(size_bytes, F_SEAL_SHRINK));
    Send("KVA1", {fd.Get()});
    return Receive();
  }

 private:
  UniqueFd socket_;
  bool connected_ = false;
};

// The packet that names exported memory of the device.
inline std::string DevicePacket(int64_t offset, int64_t size, const std::string& uuid = kFakeUuid) {
  std::string packet = "KVD1" + uuid + std::string(20, '\0');
  std::memcpy(packet.data() + 48, &offset, sizeof(offset));
  std::memcpy(packet.data() + 56, &size, sizeof(size));
  return packet;
}

class HandleBrokerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char directory[] = "/tmp/kvern-broker-XXXXXX";
    ASSERT_NE(mkdtemp(directory), nullptr);
    directory_ = directory;
    options_.path = directory_ + "/run/k.broker.sock";
    attachments_.OnClose([this](int64_t connection) {
      const std::lock_guard<std::mutex> lock(mutex_);
      closed_.insert(connection);
      changed_.notify_all();
    });
  }
  void TearDown() override {
    broker_.reset();
    unlink(options_.path.c_str());
    rmdir((directory_ + "/run").c_str());
    EXPECT_EQ(rmdir(directory_.c_str()), 0) << "files were left behind";
  }
  void Start(ImportDevice import = nullptr) {
    auto broker = HandleBroker::Start(options_, &attachments_, std::move(import));
    ASSERT_TRUE(broker.ok()) << broker.status();
    broker_ = *std::move(broker);
  }
  void WaitForClosed(size_t connections) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return closed_.size() >= connections; });
  }

  std::string directory_;
  BrokerOptions options_;
  AttachmentTable attachments_;
  std::unique_ptr<HandleBroker> broker_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<int64_t> closed_;
};

}  // namespace kvern::memory

#endif  // KVERN_TESTS_UNIT_SERVER_MEMORY_BROKER_FIXTURE_H_
