// Output memory between two fences, so that a write past either end is seen.
#ifndef KVERN_TESTS_SUPPORT_GUARDED_BUFFER_H_
#define KVERN_TESTS_SUPPORT_GUARDED_BUFFER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace kvern::support {

// [count] elements of T, each byte 0xCD until written; 64-byte fences before and after.
template <class T>
class GuardedBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit GuardedBuffer(int64_t count)
      : bytes_(2 * kFence + count * sizeof(T), kFenceByte), count_(count) {
    std::fill(bytes_.begin() + kFence, bytes_.end() - kFence, std::byte{0xCD});
  }

  T* data() { return reinterpret_cast<T*>(bytes_.data() + kFence); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data() + kFence); }
  int64_t size() const { return count_; }
  std::span<T> span() { return {data(), static_cast<size_t>(count_)}; }
  std::span<const std::byte> bytes() const {
    return std::span(bytes_).subspan(kFence, count_ * sizeof(T));
  }

  bool Intact() const {
    const auto whole = [](std::byte byte) { return byte == kFenceByte; };
    return std::all_of(bytes_.begin(), bytes_.begin() + kFence, whole) &&
           std::all_of(bytes_.end() - kFence, bytes_.end(), whole);
  }

 private:
  static constexpr size_t kFence = 64;
  static constexpr std::byte kFenceByte{0xA5};

  std::vector<std::byte> bytes_;
  int64_t count_;
};

}  // namespace kvern::support

#endif  // KVERN_TESTS_SUPPORT_GUARDED_BUFFER_H_
