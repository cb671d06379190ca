// The client's end of the handle broker: hands over memory, and is the sign that its owner lives.
#ifndef KVERN_CLIENT_CPP_BROKER_CONNECTION_H_
#define KVERN_CLIENT_CPP_BROKER_CONNECTION_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace kvern::client {

// Owns the socket: when it dies, the server expires every pool over what was attached through it.
class BrokerConnection {
 public:
  // Errors: Unavailable when nobody listens at `path`; InvalidArgument for a path that is too long
  // for a socket address.
  static absl::StatusOr<BrokerConnection> Connect(const std::string& path, absl::Duration timeout);
  ~BrokerConnection();
  BrokerConnection(BrokerConnection&& other) noexcept;
  BrokerConnection& operator=(BrokerConnection&& other) noexcept;

  // Gives the server access to a sealed memfd and returns the 16-byte attachment id. The descriptor
  // stays the caller's. Errors: the broker's code; Unavailable when the connection broke.
  absl::StatusOr<std::string> Attach(int memfd);

 private:
  explicit BrokerConnection(int socket) : socket_(socket) {}
  int socket_ = -1;
};

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_BROKER_CONNECTION_H_
