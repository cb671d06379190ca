// Each pass counts one digit of the keys that agree with the threshold so far, from the top down.
#include "kernels/cpu/radix_select.h"

#include <algorithm>
#include <iterator>

#include "kernels/base/status_macros.h"

namespace kvern::cpu {
namespace {

struct Digit {
  int shift;
  int bits;
};
constexpr Digit kDigits[] = {{21, 11}, {10, 11}, {0, 10}};
constexpr int kBuckets = 1 << 11;

}  // namespace

Threshold SelectThreshold(std::span<const uint32_t> keys, int64_t k) {
  KVERN_CHECK(k >= 1 && k <= std::ssize(keys));
  Threshold threshold;
  threshold.taken = k;
  uint32_t decided = 0;  // bits of `key` that are final
  for (const Digit& digit : kDigits) {
    int64_t counts[kBuckets] = {};
    const uint32_t mask = (1u << digit.bits) - 1;
    for (const uint32_t key : keys) {
      if ((key & decided) == threshold.key) ++counts[(key >> digit.shift) & mask];
    }
    uint32_t bucket = mask;
    for (; counts[bucket] < threshold.taken; --bucket) threshold.taken -= counts[bucket];
    threshold.key |= bucket << digit.shift;
    threshold.equal = counts[bucket];
    decided |= mask << digit.shift;
  }
  return threshold;
}

}  // namespace kvern::cpu
