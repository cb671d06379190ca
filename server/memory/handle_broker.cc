// One thread polls all connections and never blocks on any: a packet is read, answered, forgotten.
#include "server/memory/handle_broker.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"
#include "server/memory/unique_fd.h"
#include "server/memory/unix_listener.h"

namespace kvern::memory {
namespace {

constexpr char kMagic[4] = {'K', 'V', 'A', '1'};
constexpr char kDeviceMagic[4] = {'K', 'V', 'D', '1'};

// What the server answers, as it leaves the process: little-endian.
struct Answer {
  char magic[4];
  uint32_t status;
  uint8_t id[16];
};
static_assert(sizeof(Answer) == 24 && std::is_trivially_copyable_v<Answer>);

// The request for device memory, likewise.
struct DeviceRequest {
  char magic[4];
  char device_uuid[kDeviceUuidBytes];
  uint32_t zero;
  int64_t offset_bytes;
  int64_t size_bytes;
};
static_assert(sizeof(DeviceRequest) == 64 && std::is_trivially_copyable_v<DeviceRequest>);

// What came in one packet.
struct Packet {
  enum class Kind : uint8_t {
    kNone,       // nothing yet
    kEnded,      // the peer is gone
    kMalformed,  // the peer does not speak the protocol
    kAttach,
    kAttachDevice,
  };
  Kind kind = Kind::kNone;
  UniqueFd descriptor;       // of both
  DeviceHandle device = {};  // of kAttachDevice; its file is `descriptor`
};

// Ids are never used twice in a process, so that a late close cannot hit a new connection.
int64_t NextConnectionId() {
  static std::atomic<int64_t> next{1};
  return next.fetch_add(1);
}

// Owns every descriptor of the message at once, so that none outlives a refusal.
std::vector<UniqueFd> TakeDescriptors(msghdr* message) {
  std::vector<UniqueFd> descriptors;
  for (cmsghdr* part = CMSG_FIRSTHDR(message); part != nullptr; part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      descriptors.emplace_back(fd);
    }
  }
  return descriptors;
}

// kMalformed unless the payload is one of the two requests.
Packet Parse(absl::string_view payload, UniqueFd descriptor) {
  if (payload == absl::string_view(kMagic, sizeof(kMagic))) {
    return {Packet::Kind::kAttach, std::move(descriptor)};
  }
  DeviceRequest request;
  if (payload.size() != sizeof(request)) return {Packet::Kind::kMalformed, UniqueFd()};
  std::memcpy(&request, payload.data(), sizeof(request));
  const absl::string_view uuid(request.device_uuid, sizeof(request.device_uuid));
  if (std::memcmp(request.magic, kDeviceMagic, sizeof(kDeviceMagic)) != 0 || request.zero != 0 ||
      !IsDeviceUuid(uuid)) {
    return {Packet::Kind::kMalformed, UniqueFd()};
  }
  DeviceHandle handle;
  handle.kind = DeviceHandle::Kind::kFile;
  handle.file = descriptor.Get();
  handle.device_uuid = std::string(uuid);
  handle.offset_bytes = request.offset_bytes;
  handle.size_bytes = request.size_bytes;
  return {Packet::Kind::kAttachDevice, std::move(descriptor), std::move(handle)};
}

Packet Receive(int socket) {
  char payload[sizeof(DeviceRequest)] = {};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  iovec buffer = {payload, sizeof(payload)};
  msghdr message = {};
  message.msg_iov = &buffer;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);

  const ssize_t size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (size < 0) {
    const bool again = errno == EAGAIN || errno == EINTR;
    return {again ? Packet::Kind::kNone : Packet::Kind::kEnded, UniqueFd()};
  }
  std::vector<UniqueFd> descriptors = TakeDescriptors(&message);
  if (size == 0) return {Packet::Kind::kEnded, UniqueFd()};
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || descriptors.size() != 1) {
    return {Packet::Kind::kMalformed, UniqueFd()};
  }
  return Parse(absl::string_view(payload, static_cast<size_t>(size)),
               std::move(descriptors.front()));
}

// False when the peer does not read: a lost answer would leave it out of step for good.
bool Send(int socket, absl::StatusCode code, const AttachmentId& id) {
  Answer answer = {};
  std::memcpy(answer.magic, kMagic, sizeof(kMagic));
  answer.status = static_cast<uint32_t>(code);
  std::memcpy(answer.id, id.data(), id.size());
  return send(socket, &answer, sizeof(answer), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(answer);
}

}  // namespace

struct HandleBroker::State {
  struct Connection {
    UniqueFd socket;
    int64_t id = 0;
    uid_t peer = 0;
    int64_t attachments = 0;
  };

  BrokerOptions options;
  AttachmentTable* attachments = nullptr;
  ImportDevice import;
  std::unique_ptr<UnixListener> listener;
  UniqueFd stop;
  std::vector<Connection> connections;
  bool accepting = true;
  std::thread thread;

  void Serve();
  void Accept();
  // False when the connection is over.
  bool Handle(Connection* connection);
  absl::StatusOr<std::shared_ptr<Region>> Open(Packet packet, uid_t owner) const;
  absl::StatusOr<AttachmentId> Attach(Connection* connection, Packet packet);
};

void HandleBroker::State::Accept() {
  UniqueFd socket(accept4(listener->Fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.Valid()) {
    // Out of descriptors: the pending connection stays readable, and polling it would spin.
    accepting = errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM;
    return;
  }
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket.Get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 ||
      (peer.uid != geteuid() && peer.uid != 0)) {
    Send(socket.Get(), absl::StatusCode::kPermissionDenied, {});
    return;
  }
  if (static_cast<int64_t>(connections.size()) >= options.max_connections) {
    Send(socket.Get(), absl::StatusCode::kResourceExhausted, {});
    return;
  }
  Connection connection;
  connection.socket = std::move(socket);
  connection.id = NextConnectionId();
  connection.peer = peer.uid;
  connections.push_back(std::move(connection));
}

absl::StatusOr<std::shared_ptr<Region>> HandleBroker::State::Open(Packet packet,
                                                                  uid_t owner) const {
  if (packet.kind == Packet::Kind::kAttach) return Region::Map(packet.descriptor.Release(), owner);
  KVERN_ASSIGN_OR_RETURN(std::unique_ptr<DeviceMapping> mapping,
                         OpenOnDevice(import, packet.device));
  return Region::OnDevice(std::move(mapping), owner);
}

absl::StatusOr<AttachmentId> HandleBroker::State::Attach(Connection* connection, Packet packet) {
  if (connection->attachments >= options.max_attachments_per_connection) {
    return absl::ResourceExhaustedError("broker: this connection holds its limit of attachments");
  }
  KVERN_ASSIGN_OR_RETURN(std::shared_ptr<Region> region, Open(std::move(packet), connection->peer));
  ++connection->attachments;
  return attachments->Attach(std::move(region), connection->id);
}

bool HandleBroker::State::Handle(Connection* connection) {
  const int socket = connection->socket.Get();
  Packet packet = Receive(socket);
  if (packet.kind == Packet::Kind::kNone) return true;
  if (packet.kind == Packet::Kind::kEnded) return false;
  if (packet.kind == Packet::Kind::kMalformed) {
    Send(socket, absl::StatusCode::kInvalidArgument, {});
    return false;
  }
  const absl::StatusOr<AttachmentId> id = Attach(connection, std::move(packet));
  if (!id.ok()) return Send(socket, id.status().code(), {});
  return Send(socket, absl::StatusCode::kOk, *id);
}

void HandleBroker::State::Serve() {
  constexpr int kForever = -1;
  constexpr int kPauseMilliseconds = 100;
  std::vector<pollfd> polled;
  while (true) {
    polled.clear();
    polled.push_back({stop.Get(), POLLIN, 0});
    polled.push_back({accepting ? listener->Fd() : -1, POLLIN, 0});
    for (const Connection& connection : connections) {
      polled.push_back({connection.socket.Get(), POLLIN, 0});
    }
    const int ready = poll(polled.data(), polled.size(), accepting ? kForever : kPauseMilliseconds);
    accepting = true;
    if (ready < 0) continue;  // interrupted
    if (polled[0].revents != 0) break;

    // One packet per connection and round: nobody waits behind a flood.
    std::vector<Connection> open;
    for (size_t i = 0; i < connections.size(); ++i) {
      if (polled[i + 2].revents == 0 || Handle(&connections[i])) {
        open.push_back(std::move(connections[i]));
      } else {
        attachments->Close(connections[i].id);
      }
    }
    connections = std::move(open);
    if (polled[1].revents != 0) Accept();
  }
  for (const Connection& connection : connections) attachments->Close(connection.id);
  connections.clear();
}

HandleBroker::HandleBroker(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<HandleBroker>> HandleBroker::Start(const BrokerOptions& options,
                                                                  AttachmentTable* attachments,
                                                                  ImportDevice import) {
  auto state = std::make_unique<State>();
  state->options = options;
  state->attachments = attachments;
  state->import = std::move(import);
  KVERN_ASSIGN_OR_RETURN(state->listener, UnixListener::Open(options.path));
  state->stop = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!state->stop.Valid()) return absl::InternalError("broker: no event could be made");
  try {
    state->thread = std::thread([state = state.get()] { state->Serve(); });
  } catch (const std::system_error&) {
    return absl::InternalError("broker: no thread could be started");
  }
  return std::unique_ptr<HandleBroker>(new HandleBroker(std::move(state)));
}

HandleBroker::~HandleBroker() {
  const uint64_t one = 1;
  KVERN_CHECK(write(state_->stop.Get(), &one, sizeof(one)) == sizeof(one));
  state_->thread.join();
}

}  // namespace kvern::memory
