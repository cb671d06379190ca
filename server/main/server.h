// One running kvernd: engine, services, listeners, broker and metrics, started and stopped in
// order.
#ifndef KVERN_SERVER_MAIN_SERVER_H_
#define KVERN_SERVER_MAIN_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/main/config.h"

namespace kvern {

class Server {
 public:
  // Serves when it returns. Errors: of the configuration (InvalidArgument), of what is taken
  // (FailedPrecondition, Unavailable), of the backend.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const Config& config);
  // Stops at once where Drain was not called.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Health turns NOT_SERVING, new calls get UNAVAILABLE, running ones finish within the drain
  // limit. True when all did.
  bool Drain();

  std::vector<std::string> Addresses() const;  // as --listen, port 0 replaced by the one chosen
  int MetricsPort() const;                     // 0: none
  std::string Summary() const;                 // one line for the log

 private:
  struct State;
  explicit Server(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kvern

#endif  // KVERN_SERVER_MAIN_SERVER_H_
