// Which thread runs next. The ready lanes of a warp are one mask, the warps with any are another,
// in order of priority; a choice is two bit scans.
#ifndef KVERN_TESTS_SIMT_SCHEDULE_H_
#define KVERN_TESTS_SIMT_SCHEDULE_H_

#include <cstdint>

#include "simt/config.h"
#include "simt/grid.h"

namespace simt {

uint64_t Mix(uint64_t x);  // of splitmix64 (Steele, Lea, Flood 2014)

class Schedule {
 public:
  // For one block of `warps` warps, none of whose threads is ready yet.
  void Start(Order order, uint64_t seed, int warps);
  void MakeReady(int warp, uint32_t lanes) {
    if (lanes == 0) return;
    ready_[warp] |= lanes;
    positions_ |= 1u << position_[warp];
  }
  // Takes a ready thread (its index in the block) out, or gives -1.
  int Take();

 private:
  enum class Policy { kFirst, kLast, kPriority, kChurn, kUniform };

  uint64_t Draw() { return Mix(state_ += 0x9E3779B97F4A7C15u); }
  void Shuffle();
  int RandomBit(uint32_t mask);

  Policy policy_ = Policy::kFirst;
  uint64_t state_ = 0;
  int warps_ = 0;
  uint32_t positions_ = 0;  // bit p: the warp with priority p has ready lanes
  uint32_t ready_[kMaxThreads / kWarpLanes] = {};
  uint8_t position_[kMaxThreads / kWarpLanes] = {};
  uint8_t warp_at_[kMaxThreads / kWarpLanes] = {};
};

// Blocks in the order of the configuration: the block that runs as the i-th.
class BlockOrder {
 public:
  BlockOrder(Order order, uint64_t seed, int64_t blocks);
  int64_t At(int64_t i) const;

 private:
  Order order_;
  int64_t blocks_;
  // i -> (i * step + start) mod blocks is a permutation, since step and blocks share no factor.
  uint64_t step_ = 1;
  uint64_t start_ = 0;
};

}  // namespace simt

#endif  // KVERN_TESTS_SIMT_SCHEDULE_H_
