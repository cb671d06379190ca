// A total order for scores as unsigned integers: selection never compares floats.
#ifndef KVERN_KERNELS_BASE_ORDER_KEY_H_
#define KVERN_KERNELS_BASE_ORDER_KEY_H_

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/host_device.h"

namespace kvern {

inline constexpr uint32_t kNanOrderKey = 0;

// Ascends with the score; -0 and +0 are equal; every NaN is kNanOrderKey, below -infinity.
KVERN_HD inline uint32_t OrderKey(float score) {
  if (score != score) return kNanOrderKey;
  if (score == 0.0f) return 0x80000000u;
  const uint32_t bits = internal::BitsFromFloat(score);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// The score of a key other than kNanOrderKey (+0 for both zeros).
KVERN_HD inline float ScoreOfOrderKey(uint32_t key) {
  return internal::FloatFromBits((key & 0x80000000u) != 0 ? key & 0x7FFFFFFFu : ~key);
}

// Larger is picked first; `precedence` decides between equal scores and is unique.
KVERN_HD inline uint64_t RankKey(float score, uint32_t precedence) {
  return uint64_t{OrderKey(score)} << 32 | precedence;
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_ORDER_KEY_H_
