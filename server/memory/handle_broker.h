// The handle broker: an AF_UNIX SOCK_SEQPACKET socket beside the gRPC one, over which clients pass
// memory descriptors and learn the ids that RegisterPool names (contract 2.4).
//
// Wire format, one packet each way (little-endian):
//   client: "KVA1" and one memfd by SCM_RIGHTS, or
//           "KVD1", the device's UUID (40 bytes), u32 0, i64 offset, i64 size, and one exported
//           allocation of that device (VMM) by SCM_RIGHTS
//   server: "KVA1", u32 status (0 ok, else an absl code), 16-byte attachment id (zero on error)
// Refused memory leaves the connection open; a packet of another form ends it, after an answer.
// The open connection is the liveness of everything attached through it. Nobody waits for a peer;
// device memory may wait for work that the device has begun.
#ifndef KVERN_SERVER_MEMORY_HANDLE_BROKER_H_
#define KVERN_SERVER_MEMORY_HANDLE_BROKER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/memory/region.h"

namespace kvern::memory {

struct BrokerOptions {
  std::string path;  // X.broker.sock, mode 0660
  int64_t max_connections = 256;
  int64_t max_attachments_per_connection = 64;
};

class HandleBroker {
 public:
  // Listens and serves on a thread of its own. Peers of another uid than the server's or root are
  // refused (SO_PEERCRED). Errors: FailedPrecondition when a live broker holds the path; Internal.
  static absl::StatusOr<std::unique_ptr<HandleBroker>> Start(const BrokerOptions& options,
                                                             AttachmentTable* attachments,
                                                             ImportDevice import = nullptr);
  // Closes every connection, joins, unlinks the path.
  ~HandleBroker();
  HandleBroker(const HandleBroker&) = delete;
  HandleBroker& operator=(const HandleBroker&) = delete;

 private:
  struct State;
  explicit HandleBroker(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_HANDLE_BROKER_H_
