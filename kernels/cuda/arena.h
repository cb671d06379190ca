// The device memory that a process reserves at its start, handed out in pieces.
#ifndef KVERN_KERNELS_CUDA_ARENA_H_
#define KVERN_KERNELS_CUDA_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace kvern::cuda {

// Books only: it never touches the memory. Pieces are aligned to 256 bytes. Thread-safe.
class Arena {
 public:
  // What lives for one op comes from the high end, what callers hold from the low end: long lives
  // do not cut the space of short ones.
  enum class End : uint8_t { kLow, kHigh };

  Arena(std::byte* base, int64_t bytes);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Null when no gap is long enough. Never null for 0 bytes of a non-empty gap.
  std::byte* Allocate(int64_t bytes, End end);
  // What Allocate gave for as many bytes.
  void Free(std::byte* data, int64_t bytes);

  bool Contains(const void* address) const {
    const auto* byte = static_cast<const std::byte*>(address);
    return byte >= base_ && byte < base_ + bytes_;
  }
  std::byte* base() const { return base_; }
  int64_t bytes() const { return bytes_; }
  int64_t FreeBytes() const;

 private:
  std::byte* const base_;
  const int64_t bytes_;
  mutable std::mutex mutex_;
  std::map<int64_t, int64_t> gaps_;  // offset to bytes; never adjacent
};

}  // namespace kvern::cuda

#endif  // KVERN_KERNELS_CUDA_ARENA_H_
