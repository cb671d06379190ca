// One packet out with the descriptor (SCM_RIGHTS), one packet back with its id.
#include "client/cpp/broker_connection.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvern::client {
namespace {

constexpr char kMagic[4] = {'K', 'V', 'A', '1'};

// Little-endian, as the broker answers.
struct BrokerReply {
  char magic[4];
  uint32_t status;  // 0 ok, else an absl code
  char attachment_id[16];
};
static_assert(sizeof(BrokerReply) == 24 && std::is_trivially_copyable_v<BrokerReply>);

// Little-endian, as the broker reads it.
struct DeviceRequest {
  char magic[4] = {'K', 'V', 'D', '1'};
  char device_uuid[40] = {};
  uint32_t zero = 0;
  int64_t offset_bytes = 0;
  int64_t size_bytes = 0;
};
static_assert(sizeof(DeviceRequest) == 64 && std::is_trivially_copyable_v<DeviceRequest>);

absl::Status Broken(const char* what) {
  return absl::UnavailableError(
      absl::StrCat("handle broker: ", what, " failed: ", std::strerror(errno)));
}

absl::Status SetTimeout(int socket, absl::Duration timeout) {
  const timeval limit = absl::ToTimeval(timeout);
  for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO}) {
    if (setsockopt(socket, SOL_SOCKET, option, &limit, sizeof(limit)) != 0) {
      return Broken("setting a timeout");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BrokerConnection> BrokerConnection::Connect(const std::string& path,
                                                           absl::Duration timeout) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "broker path: got ", path.size(), " bytes, want 1 to ", sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return Broken("making a socket");
  BrokerConnection connection(fd);
  if (absl::Status status = SetTimeout(fd, timeout); !status.ok()) return status;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Broken("connecting");
  }
  return connection;
}

BrokerConnection::~BrokerConnection() {
  if (socket_ >= 0) close(socket_);
}

BrokerConnection::BrokerConnection(BrokerConnection&& other) noexcept
    : socket_(std::exchange(other.socket_, -1)) {}

BrokerConnection& BrokerConnection::operator=(BrokerConnection&& other) noexcept {
  std::swap(socket_, other.socket_);
  return *this;
}

absl::StatusOr<std::string> BrokerConnection::Attach(int memfd) {
  return Ask(absl::string_view(kMagic, sizeof(kMagic)), memfd);
}

absl::StatusOr<std::string> BrokerConnection::AttachDevice(const DeviceFile& memory) {
  DeviceRequest request;
  if (memory.device_uuid.size() != sizeof(request.device_uuid)) {
    return absl::InvalidArgumentError(absl::StrCat("device_uuid: got ", memory.device_uuid.size(),
                                                   " bytes, want ", sizeof(request.device_uuid)));
  }
  std::memcpy(request.device_uuid, memory.device_uuid.data(), sizeof(request.device_uuid));
  request.offset_bytes = memory.offset_bytes;
  request.size_bytes = memory.size_bytes;
  return Ask(absl::string_view(reinterpret_cast<const char*>(&request), sizeof(request)),
             memory.file);
}

absl::StatusOr<std::string> BrokerConnection::Ask(absl::string_view payload, int file) {
  iovec bytes = {const_cast<char*>(payload.data()), payload.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &file, sizeof(file));
  if (sendmsg(socket_, &message, MSG_NOSIGNAL) != static_cast<ssize_t>(payload.size())) {
    return Broken("sending");
  }

  BrokerReply reply = {};
  const ssize_t got = recv(socket_, &reply, sizeof(reply), 0);
  if (got < 0) return Broken("receiving");
  if (got != sizeof(reply) || std::memcmp(reply.magic, kMagic, sizeof(kMagic)) != 0) {
    return absl::UnavailableError(absl::StrCat("handle broker: got ", got,
                                               " bytes that are no answer, want ", sizeof(reply)));
  }
  if (reply.status != 0) {
    return absl::Status(static_cast<absl::StatusCode>(reply.status),
                        "handle broker: the server refused the memory");
  }
  return std::string(reply.attachment_id, sizeof(reply.attachment_id));
}

}  // namespace kvern::client
