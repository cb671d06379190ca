// fork and exec with stderr on a pipe: the server's own line says when it is ready.
#include "tests/support/server_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace kvern::support {
namespace {

std::vector<char*> Pointers(const std::vector<std::string>& command) {
  std::vector<char*> pointers;
  for (const std::string& word : command) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

[[noreturn]] void Exec(const std::vector<std::string>& command) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execv(command[0].c_str(), Pointers(command).data());
  std::fprintf(stderr, "cannot run %s: %s\n", command[0].c_str(), std::strerror(errno));
  _exit(127);
}

int ExitOf(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status); }

}  // namespace

std::string BinaryPath(const std::string& name) {
  if (const char* directory = std::getenv("KVERN_BIN_DIR")) {
    return std::string(directory) + "/" + name;
  }
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / name).string();
}

std::unique_ptr<ServerProcess> ServerProcess::Start(const std::vector<std::string>& flags) {
  std::unique_ptr<ServerProcess> server(new ServerProcess);
  char directory[] = "/tmp/kvern-test-XXXXXX";
  if (mkdtemp(directory) == nullptr) return nullptr;
  server->directory_ = directory;
  std::vector<std::string> command = {BinaryPath("kvernd"), "--listen", server->Address(),
                                      "--metrics-listen", "127.0.0.1:0"};
  command.insert(command.end(), flags.begin(), flags.end());
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return nullptr;
  server->pid_ = fork();
  if (server->pid_ == 0) {
    dup2(ends[1], STDERR_FILENO);
    Exec(command);
  }
  close(ends[1]);
  server->log_fd_ = ends[0];
  fcntl(server->log_fd_, F_SETFL, O_NONBLOCK);
  if (!server->ReadUntilServing()) {
    std::fprintf(stderr, "kvernd did not start: %s\n", server->log_.c_str());
    return nullptr;
  }
  return server;
}

bool ServerProcess::ReadUntilServing() {
  while (log_.find(" serves on ") == std::string::npos || log_.back() != '\n') {
    pollfd readable = {log_fd_, POLLIN, 0};
    if (poll(&readable, 1, /*timeout_ms=*/60'000) <= 0) return false;
    char buffer[4096];
    const ssize_t got = read(log_fd_, buffer, sizeof(buffer));
    if (got <= 0) return false;
    log_.append(buffer, static_cast<size_t>(got));
  }
  const std::string before_port = "metrics on port ";
  const size_t at = log_.find(before_port);
  if (at != std::string::npos) metrics_port_ = std::atoi(log_.c_str() + at + before_port.size());
  return true;
}

ServerProcess::~ServerProcess() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  if (log_fd_ >= 0) close(log_fd_);
  std::error_code ignored;
  if (!directory_.empty()) std::filesystem::remove_all(directory_, ignored);
}

void ServerProcess::Signal(int signal) const { kill(pid_, signal); }

int ServerProcess::Wait() {
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return ExitOf(status);
}

std::string ServerProcess::Log() {
  char buffer[4096];
  for (ssize_t got; (got = read(log_fd_, buffer, sizeof(buffer))) > 0;) {
    log_.append(buffer, static_cast<size_t>(got));
  }
  return log_;
}

std::string ServerProcess::Scrape() const {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(metrics_port_));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string page;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET /metrics HTTP/1.0\r\nConnection: close\r\n\r\n";
    if (write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size())) {
      char buffer[65536];
      for (ssize_t got; (got = read(fd, buffer, sizeof(buffer))) > 0;) {
        page.append(buffer, static_cast<size_t>(got));
      }
    }
  }
  close(fd);
  const size_t body = page.find("\r\n\r\n");
  return body == std::string::npos ? "" : page.substr(body + 4);
}

int ServerProcess::OpenFds() const {
  int count = 0;
  const std::string path = "/proc/" + std::to_string(pid_) + "/fd";
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path)) ++count;
  return count;
}

int ServerProcess::MappedMemfds() const {
  std::ifstream maps("/proc/" + std::to_string(pid_) + "/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:") != std::string::npos) ++count;
  }
  return count;
}

CommandOutput RunCommand(const std::vector<std::string>& command) {
  CommandOutput output;
  int out[2], err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) return output;
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    Exec(command);
  }
  close(out[1]);
  close(err[1]);
  pollfd ends[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
  std::string* const texts[2] = {&output.out, &output.err};
  for (int open_ends = 2; open_ends > 0;) {
    poll(ends, 2, -1);
    for (int i = 0; i < 2; ++i) {
      if (ends[i].fd < 0 || ends[i].revents == 0) continue;
      char buffer[65536];
      const ssize_t got = read(ends[i].fd, buffer, sizeof(buffer));
      if (got > 0) {
        texts[i]->append(buffer, static_cast<size_t>(got));
        continue;
      }
      close(ends[i].fd);
      ends[i].fd = -1;
      --open_ends;
    }
  }
  int status = 0;
  waitpid(pid, &status, 0);
  output.exit_code = ExitOf(status);
  return output;
}

}  // namespace kvern::support
