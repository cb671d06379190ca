// What is known of every byte that kernels may touch: who touched it last, and whether anybody
// wrote it.
#ifndef KVERN_TESTS_SIMT_CHECK_SHADOW_H_
#define KVERN_TESTS_SIMT_CHECK_SHADOW_H_

#include <cstddef>
#include <cstdint>

#include "simt/memory.h"

namespace simt::check {

// One access. `run` counts blocks of the whole process from 1; 0 is no access.
struct Mark {
  const void* pc = nullptr;
  uint32_t run = 0;
  uint32_t epoch = 0;  // barriers of the block before it
  uint32_t clock = 0;  // of the lane, see order.h
  uint16_t thread = 0;
  bool atomic = false;
};

// Of one byte. A third reader takes the place of the second: a race with that can be missed.
struct Cell {
  Mark write;
  Mark reads[2];
};

// Of one run of bytes; memory is taken as bytes are touched.
class Shadow {
 public:
  Shadow(const std::byte* begin, size_t bytes);
  ~Shadow();
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  bool Holds(const std::byte* address) const {
    return address >= begin_ && address < begin_ + bytes_;
  }
  const std::byte* begin() const { return begin_; }
  size_t bytes() const { return bytes_; }
  Cell* cells() { return touched_ = true, cells_; }
  uint8_t* written() { return written_; }  // not 0: somebody wrote the byte
  bool Written(size_t i) const { return all_written_ || written_[i] != 0; }
  void ForgetWrites();  // nobody wrote any byte
  bool all_written() const { return all_written_; }
  void SetAllWritten() { all_written_ = true; }
  void ForgetAccesses();  // may give memory back

 private:
  const std::byte* begin_;
  size_t bytes_;
  Cell* cells_;
  uint8_t* written_;
  bool touched_ = false;
  bool all_written_ = false;
};

// The shadow of the allocation around `address`, or null. For the thread that runs a grid: it stays
// while the grid runs.
Shadow* FindShadow(const std::byte* address);
// The allocation closest to `address`; null if none is near. For reports.
const Shadow* NearestShadow(const std::byte* address);
// A grid begins or ends.
void ForgetAccesses();

}  // namespace simt::check

#endif  // KVERN_TESTS_SIMT_CHECK_SHADOW_H_
