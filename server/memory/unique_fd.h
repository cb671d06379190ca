// A file descriptor with one owner.
#ifndef KVERN_SERVER_MEMORY_UNIQUE_FD_H_
#define KVERN_SERVER_MEMORY_UNIQUE_FD_H_

#include <unistd.h>

#include <utility>

namespace kvern::memory {

// Closes its descriptor once; empty after a move.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd() {
    if (fd_ >= 0) close(fd_);
  }

  bool Valid() const { return fd_ >= 0; }
  int Get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

}  // namespace kvern::memory

#endif  // KVERN_SERVER_MEMORY_UNIQUE_FD_H_
