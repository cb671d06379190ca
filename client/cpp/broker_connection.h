// The client's end of the handle broker: hands over memory, and is the sign that its owner lives.
#ifndef KVERN_CLIENT_CPP_BROKER_CONNECTION_H_
#define KVERN_CLIENT_CPP_BROKER_CONNECTION_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace kvern::client {

// An exported allocation of a GPU (cuMemExportToShareableHandle), and which part of it.
struct DeviceFile {
  int file = -1;                 // stays the caller's
  std::string device_uuid = {};  // GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx
  int64_t offset_bytes = 0;      // a multiple of 16
  int64_t size_bytes = 0;
};

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
  // Likewise to memory of the server's GPU. Errors also: InvalidArgument for a UUID of another
  // form.
  absl::StatusOr<std::string> AttachDevice(const DeviceFile& memory);

 private:
  // One packet with one descriptor, and its answer.
  absl::StatusOr<std::string> Ask(absl::string_view payload, int file);
  explicit BrokerConnection(int socket) : socket_(socket) {}
  int socket_ = -1;
};

}  // namespace kvern::client

#endif  // KVERN_CLIENT_CPP_BROKER_CONNECTION_H_
