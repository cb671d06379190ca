// Orders matter more than their number: with uniform choice all warps stay in step, because every
// meeting point holds them together, and missing barriers hide; fixed random priorities show them.
#include "simt/schedule.h"

#include <bit>
#include <numeric>
#include <utility>

namespace simt {
namespace {

constexpr int kChurnPeriod = 64;  // choices between new priorities, on average

}  // namespace

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

void Schedule::Start(Order order, uint64_t seed, int warps) {
  state_ = seed;
  warps_ = warps;
  positions_ = 0;
  for (int w = 0; w < warps; ++w) {
    const int position = order == Order::kReverse ? warps - 1 - w : w;
    ready_[w] = 0;
    position_[w] = static_cast<uint8_t>(position);
    warp_at_[position] = static_cast<uint8_t>(w);
  }
  if (order == Order::kRandom) {
    constexpr Policy kPolicies[] = {Policy::kPriority, Policy::kChurn, Policy::kPriority,
                                    Policy::kUniform};
    policy_ = kPolicies[Draw() % 4];
    Shuffle();
  } else {
    policy_ = order == Order::kForward ? Policy::kFirst : Policy::kLast;
  }
}

void Schedule::Shuffle() {
  for (int i = warps_ - 1; i > 0; --i) {
    std::swap(warp_at_[i], warp_at_[Draw() % static_cast<uint64_t>(i + 1)]);
  }
  positions_ = 0;
  for (int p = 0; p < warps_; ++p) {
    position_[warp_at_[p]] = static_cast<uint8_t>(p);
    if (ready_[warp_at_[p]] != 0) positions_ |= 1u << p;
  }
}

int Schedule::RandomBit(uint32_t mask) {
  if (std::has_single_bit(mask)) return std::countr_zero(mask);
  const int turn = static_cast<int>(Draw() & 31);
  return (std::countr_zero(std::rotr(mask, turn)) + turn) & 31;
}

int Schedule::Take() {
  if (positions_ == 0) return -1;
  if (policy_ == Policy::kChurn && Draw() % kChurnPeriod == 0) Shuffle();
  const int position =
      policy_ == Policy::kUniform ? RandomBit(positions_) : __builtin_ctz(positions_);
  const int warp = warp_at_[position];
  uint32_t& ready = ready_[warp];
  int lane = 0;
  if (policy_ == Policy::kFirst) {
    lane = __builtin_ctz(ready);
  } else if (policy_ == Policy::kLast) {
    lane = 31 - __builtin_clz(ready);
  } else {
    lane = RandomBit(ready);
  }
  ready &= ~(1u << lane);
  if (ready == 0) positions_ &= ~(1u << position);
  return warp * kWarpLanes + lane;
}

BlockOrder::BlockOrder(Order order, uint64_t seed, int64_t blocks)
    : order_(order), blocks_(blocks) {
  if (order != Order::kRandom) return;
  const auto n = static_cast<uint64_t>(blocks);
  start_ = Mix(seed) % n;
  step_ = Mix(seed + 1) % n;
  while (std::gcd(step_, n) != 1) ++step_;
}

int64_t BlockOrder::At(int64_t i) const {
  if (order_ == Order::kForward) return i;
  if (order_ == Order::kReverse) return blocks_ - 1 - i;
  const auto n = static_cast<uint64_t>(blocks_);
  return static_cast<int64_t>((static_cast<uint64_t>(i) * step_ + start_) % n);
}

}  // namespace simt
