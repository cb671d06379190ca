// A handle broker for one client: takes one memfd and answers as it was told to.
#ifndef KVERN_TESTS_UNIT_CLIENT_FAKE_BROKER_H_
#define KVERN_TESTS_UNIT_CLIENT_FAKE_BROKER_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <thread>

#include "gtest/gtest.h"

namespace kvern {

class FakeBroker {
 public:
  explicit FakeBroker(const std::string& path, uint32_t status = 0, size_t reply_bytes = 24)
      : status_(status), reply_bytes_(reply_bytes) {
    listener_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_, 4), 0);
    thread_ = std::thread([this] { Serve(); });
  }
  // Waits for the client to hang up.
  ~FakeBroker() {
    Join();
    if (memory != nullptr) munmap(memory, memory_bytes);
    close(listener_);
  }
  void Join() {
    if (thread_.joinable()) thread_.join();
  }

  // What arrived; read after Attach returned.
  std::string magic;  // the whole payload
  int seals = 0;
  size_t memory_bytes = 0;
  unsigned char* memory = nullptr;

 private:
  void Serve() {
    const int peer = accept(listener_, nullptr, nullptr);
    char payload[128] = {};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    iovec part = {payload, sizeof(payload)};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t got = recvmsg(peer, &message, MSG_CMSG_CLOEXEC);
    if (got > 0) {
      magic.assign(payload, static_cast<size_t>(got));
      Keep(message);
      char reply[24] = {'K', 'V', 'A', '1'};
      std::memcpy(reply + 4, &status_, sizeof(status_));
      std::memset(reply + 8, 'i', 16);
      EXPECT_EQ(send(peer, reply, reply_bytes_, MSG_NOSIGNAL), static_cast<ssize_t>(reply_bytes_));
      EXPECT_EQ(recv(peer, payload, sizeof(payload), 0), 0);  // the client's end closes
    }
    close(peer);
  }
  void Keep(msghdr& message) {
    const cmsghdr* header = CMSG_FIRSTHDR(&message);
    if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return;
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    seals = fcntl(fd, F_GET_SEALS);
    memory_bytes = static_cast<size_t>(lseek(fd, 0, SEEK_END));
    void* data = mmap(nullptr, memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memory = data == MAP_FAILED ? nullptr : static_cast<unsigned char*>(data);
    close(fd);
  }

  const uint32_t status_;
  const size_t reply_bytes_;
  int listener_ = -1;
  std::thread thread_;
};

}  // namespace kvern

#endif  // KVERN_TESTS_UNIT_CLIENT_FAKE_BROKER_H_
