// Numbers whose sum shows the order in which it was taken.
#ifndef KVERN_TESTS_PARITY_CANCELLING_H_
#define KVERN_TESTS_PARITY_CANCELLING_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tests/support/host_kv.h"

namespace kvern::support {

// Of every four, two of many magnitudes cancel, so that little but rounding remains of the sum of
// all, and one is 0, where a mean taken off is seen with all its digits.
inline std::vector<float> CancellingFloats(int64_t count, uint64_t seed) {
  std::vector<float> values = RandomFloats(count, seed);
  for (int64_t i = 0; i + 3 < count; i += 4) {
    values[i] = std::ldexp(values[i], static_cast<int>((i * 5 + 60) % 61));
    values[i + 1] = -values[i];
    values[i + 2] = 0.0f;
  }
  std::shuffle(values.begin(), values.end(), std::mt19937_64(seed));
  return values;
}

}  // namespace kvern::support

#endif  // KVERN_TESTS_PARITY_CANCELLING_H_
