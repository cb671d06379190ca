// A real kvernd in its own process, on sockets of its own.
#ifndef KVERN_TESTS_SUPPORT_SERVER_PROCESS_H_
#define KVERN_TESTS_SUPPORT_SERVER_PROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

namespace kvern::support {

// Runs the kvernd beside the test binary (or $KVERN_BIN_DIR) in a temporary directory, which goes
// when the object does. Dies with the test.
class ServerProcess {
 public:
  // Returns when the server says that it serves; null when it exits first (Log says why). Flags are
  // added after --listen unix:... and --metrics-listen 127.0.0.1:0.
  static std::unique_ptr<ServerProcess> Start(const std::vector<std::string>& flags = {});
  ~ServerProcess();  // kill -9 if it still runs
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  std::string Address() const { return "unix:" + directory_ + "/kvern.sock"; }
  std::string SocketPath(const std::string& name) const { return directory_ + "/" + name; }
  int MetricsPort() const { return metrics_port_; }
  pid_t Pid() const { return pid_; }
  void Signal(int signal) const;
  // Waits for the end: the exit code, or minus the signal.
  int Wait();
  // What it wrote to stderr so far.
  std::string Log();
  // The page of Prometheus' exposition.
  std::string Scrape() const;
  // Entries of /proc/PID/fd, and lines of /proc/PID/maps that name a memfd.
  int OpenFds() const;
  int MappedMemfds() const;

 private:
  ServerProcess() = default;
  bool ReadUntilServing();

  std::string directory_;
  std::string log_;
  pid_t pid_ = -1;
  int log_fd_ = -1;
  int metrics_port_ = 0;
};

// Where kvernd and kvern were built: $KVERN_BIN_DIR, or the folder of this test binary.
std::string BinaryPath(const std::string& name);

struct CommandOutput {
  int exit_code = -1;  // minus the signal when one ended it
  std::string out;
  std::string err;
};
// Runs a program to its end.
CommandOutput RunCommand(const std::vector<std::string>& command);

}  // namespace kvern::support

#endif  // KVERN_TESTS_SUPPORT_SERVER_PROCESS_H_
