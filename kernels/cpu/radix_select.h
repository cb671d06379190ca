// The k-th largest of many order keys by counting, without sorting or moving them.
#ifndef KVERN_KERNELS_CPU_RADIX_SELECT_H_
#define KVERN_KERNELS_CPU_RADIX_SELECT_H_

#include <cstdint>
#include <span>

namespace kvern::cpu {

// The first k in descending order are: every key above `key`, and `taken` of the `equal` keys that
// are the same as it.
struct Threshold {
  uint32_t key = 0;
  int64_t taken = 0;
  int64_t equal = 0;
};

// 1 <= k <= keys.size().
Threshold SelectThreshold(std::span<const uint32_t> keys, int64_t k);

}  // namespace kvern::cpu

#endif  // KVERN_KERNELS_CPU_RADIX_SELECT_H_
