// Each pass settles two bits of the threshold, from the top down: three counts of the keys that are
// not below a bound, which cost a comparison each and no table.
#include "kernels/cpu/radix_select.h"

#include <algorithm>
#include <iterator>

#include "kernels/cpu/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/radix_select.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which decides for what it is compiled.
#include "hwy/highway.h"
#include "kernels/base/status_macros.h"
#include "kernels/cpu/unroll-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int kBounds = 3;

// counts[i] = keys not below bounds[i]; no bound is 0.
void CountFrom(std::span<const uint32_t> keys, const uint32_t (&bounds)[kBounds],
               int64_t (&counts)[kBounds]) {
  const hn::ScalableTag<uint32_t> d;
  using V = hn::Vec<decltype(d)>;
  const size_t step = hn::Lanes(d);
  const V one = hn::Set(d, 1u);
  V below[kBounds];
  V count[kBounds];
  Unroll<kBounds>([&](auto i) KVERN_INLINE_STEP {
    below[i] = hn::Set(d, bounds[i] - 1);
    count[i] = hn::Zero(d);
  });
  size_t at = 0;
  for (; at + step <= keys.size(); at += step) {
    const V key = hn::LoadU(d, keys.data() + at);
    Unroll<kBounds>([&](auto i) KVERN_INLINE_STEP {
      count[i] = hn::IfThenElse(hn::Gt(key, below[i]), hn::Add(count[i], one), count[i]);
    });
  }
  Unroll<kBounds>([&](auto i) KVERN_INLINE_STEP {
    counts[i] = static_cast<int64_t>(hn::GetLane(hn::SumOfLanes(d, count[i])));
    for (size_t rest = at; rest < keys.size(); ++rest) counts[i] += keys[rest] >= bounds[i] ? 1 : 0;
  });
}

}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvern::cpu {

HWY_EXPORT(CountFrom);

Threshold SelectThreshold(std::span<const uint32_t> keys, int64_t k) {
  KVERN_CHECK(k >= 1 && k <= std::ssize(keys));
  Threshold threshold;
  int64_t from = std::ssize(keys);  // keys not below threshold.key
  int64_t above = 0;                // keys not below the next value of its settled bits
  for (int shift = 30; shift >= 0; shift -= 2) {
    uint32_t bounds[3];
    int64_t counts[3];
    for (uint32_t i = 0; i < 3; ++i) bounds[i] = threshold.key | (i + 1) << shift;
    HWY_DYNAMIC_DISPATCH(CountFrom)(keys, bounds, counts);
    int digit = 3;
    while (digit > 0 && counts[digit - 1] < k) --digit;
    if (digit < 3) above = counts[digit];
    if (digit > 0) {
      threshold.key = bounds[digit - 1];
      from = counts[digit - 1];
    }
  }
  threshold.taken = k - above;
  threshold.equal = from - above;
  return threshold;
}

}  // namespace kvern::cpu
#endif  // HWY_ONCE
