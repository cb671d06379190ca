// The one order of every sum (ruling 6): 16 virtual lanes, then the tree 8, 4, 2, 1.
#ifndef KVERN_KERNELS_BASE_LANES_H_
#define KVERN_KERNELS_BASE_LANES_H_

#include <cmath>
#include <cstdint>

#include "kernels/base/host_device.h"

namespace kvern {

inline constexpr int kLanes = 16;            // element i of a sum goes to lane i mod 16
inline constexpr int64_t kTileTokens = 256;  // sums over tokens and stop checks go tile by tile

// Adds 16 partial sums: lane i takes lane i + 8, then i + 4, i + 2, i + 1.
template <class T>
KVERN_HD T TreeSum(const T* lanes) {
  T sum[kLanes];
  for (int i = 0; i < kLanes; ++i) sum[i] = lanes[i];
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

// sum_i a[i] * b[i], each product by fma into its lane, in index order.
template <class T>
KVERN_HD T LaneDot(const T* a, const T* b, int64_t n) {
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i % kLanes] = std::fma(a[i], b[i], lanes[i % kLanes]);
  return TreeSum(lanes);
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_LANES_H_
