// The shared memory of the block that runs: dynamic memory first, then variables as threads declare
// them, each followed by a zone that nobody may touch.
#ifndef KVERN_TESTS_SIMT_ARENA_H_
#define KVERN_TESTS_SIMT_ARENA_H_

#include <cstddef>
#include <string>

#include "simt/hooks.h"

namespace simt {

// One, since one block runs at a time.
class Arena {
 public:
  static constexpr size_t kBytes = size_t{288} << 10;
  static constexpr size_t kRedZone = 64;
  static constexpr int kMaxVariables = 64;

  // Empties it and fills the dynamic part with 0xFF.
  void Start(size_t dynamic_bytes);
  // Finds or makes the variable. Fails the grid when shared memory is used up.
  void* Declare(const SharedVariable& variable, Site site);
  std::byte* dynamic() { return bytes_; }
  // Name of the first variable whose end somebody wrote over, or null. Unknown (null) in builds
  // that report the write itself.
  const char* OverrunVariable() const;

  bool Holds(const void* address) const {
    const auto* byte = static_cast<const std::byte*>(address);
    return byte >= bytes_ && byte < bytes_ + kBytes;
  }
  size_t OffsetOf(const void* address) const {
    return static_cast<size_t>(static_cast<const std::byte*>(address) - bytes_);
  }
  // The name of the variable that holds all these bytes, or null.
  const char* VariableAt(const void* address, size_t bytes) const;

 private:
  struct Placed {
    const void* tag;
    const char* name;
    size_t begin;
    size_t bytes;
  };

  void Place(const SharedVariable& variable, size_t begin);

  alignas(256) std::byte bytes_[kBytes];
  Placed placed_[kMaxVariables];
  int count_ = 0;
  size_t used_ = 0;          // of bytes_, zones included
  size_t shared_bytes_ = 0;  // what a GPU would count
};

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_ARENA_H_
