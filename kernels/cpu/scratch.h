// Working memory of one worker: grows to the largest problem seen and is kept between calls.
#ifndef KVERN_KERNELS_CPU_SCRATCH_H_
#define KVERN_KERNELS_CPU_SCRATCH_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"

namespace kvern::cpu {

// A problem calls Reset, then takes what it needs, then asks Taken once. Not thread-safe.
class Scratch {
 public:
  static constexpr int64_t kAlign = 64;

  // Forgets what was taken. Allocates only if the last problem did not fit in one piece.
  void Reset();

  // [count] elements, 64-byte aligned, contents arbitrary, valid until Reset. Null once memory ran
  // out.
  template <class T>
  T* Take(int64_t count) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= kAlign);
    return static_cast<T*>(TakeBytes(count * static_cast<int64_t>(sizeof(T))));
  }

  // Ok, or ResourceExhausted when some Take since Reset got null.
  absl::Status Taken() const;

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  struct Piece {
    std::unique_ptr<std::byte, Free> data;
    int64_t bytes = 0;
  };

  void* TakeBytes(int64_t bytes);
  bool AddPiece(int64_t bytes);

  std::vector<Piece> pieces_;
  int64_t used_bytes_ = 0;     // of the last piece
  int64_t missing_bytes_ = 0;  // asked for and not given
};

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_SCRATCH_H_
