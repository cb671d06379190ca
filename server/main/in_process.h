// The whole service without a socket, for `kvern --local` and tests: the same services over a gRPC
// in-process channel (ruling 19).
#ifndef KVERN_SERVER_MAIN_IN_PROCESS_H_
#define KVERN_SERVER_MAIN_IN_PROCESS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backends.h"
#include "server/memory/limits.h"

namespace grpc {
class Channel;
}

namespace kvern {

class InProcessServer {
 public:
  // Errors: of MakeBackend; ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<InProcessServer>> Start(const BackendOptions& backend,
                                                                const Limits& limits);
  // Ends running calls.
  ~InProcessServer();
  InProcessServer(const InProcessServer&) = delete;
  InProcessServer& operator=(const InProcessServer&) = delete;

  std::shared_ptr<grpc::Channel> Channel() const;

 private:
  struct State;
  explicit InProcessServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvern

#endif  // KVERN_SERVER_MAIN_IN_PROCESS_H_
