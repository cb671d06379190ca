// Barriers, shuffles and votes under their CUDA names.
#ifndef KVERN_TESTS_SIMT_COLLECTIVES_H_
#define KVERN_TESTS_SIMT_COLLECTIVES_H_

#include <cstdint>
#include <cstring>

#include "simt/hooks.h"

namespace simt {

template <class T>
SIMT_SHIM uint64_t ToBits(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "collectives move 4 or 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
SIMT_SHIM T FromBits(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
SIMT_SHIM T Reduce(WarpOp op, uint32_t mask, T value, Site site) {
  return FromBits<T>(MeetWarp({op, mask, ToBits(value), 0, kWarpLanes, site}));
}

}  // namespace simt

SIMT_SHIM void __syncthreads(simt::Site site = simt::Site::Here()) {
  simt::MeetBlock(simt::BarrierOp::kPlain, 0, site);
}
SIMT_SHIM int __syncthreads_count(int predicate, simt::Site site = simt::Site::Here()) {
  return simt::MeetBlock(simt::BarrierOp::kCount, predicate, site);
}
SIMT_SHIM int __syncthreads_and(int predicate, simt::Site site = simt::Site::Here()) {
  return simt::MeetBlock(simt::BarrierOp::kAnd, predicate, site);
}
SIMT_SHIM int __syncthreads_or(int predicate, simt::Site site = simt::Site::Here()) {
  return simt::MeetBlock(simt::BarrierOp::kOr, predicate, site);
}
SIMT_SHIM void __syncwarp(unsigned mask = 0xFFFFFFFFu, simt::Site site = simt::Site::Here()) {
  simt::MeetWarp({simt::WarpOp::kSync, mask, 0, 0, simt::kWarpLanes, site});
}

// T name(mask, value, argument, width): all four shuffles differ only in whose value they give.
#define SIMT_SHUFFLE(name, op, Argument)                                                        \
  template <class T>                                                                            \
  SIMT_SHIM T name(unsigned mask, T value, Argument argument, int width = simt::kWarpLanes,     \
                   simt::Site site = simt::Site::Here()) {                                      \
    return simt::FromBits<T>(                                                                   \
        simt::MeetWarp({simt::WarpOp::op, mask, simt::ToBits(value),                            \
                        static_cast<uint32_t>(argument), static_cast<uint32_t>(width), site})); \
  }
SIMT_SHUFFLE(__shfl_sync, kShuffle, int)
SIMT_SHUFFLE(__shfl_up_sync, kShuffleUp, unsigned)
SIMT_SHUFFLE(__shfl_down_sync, kShuffleDown, unsigned)
SIMT_SHUFFLE(__shfl_xor_sync, kShuffleXor, int)
#undef SIMT_SHUFFLE

SIMT_SHIM unsigned __ballot_sync(unsigned mask, int predicate,
                                 simt::Site site = simt::Site::Here()) {
  return simt::Reduce(simt::WarpOp::kBallot, mask, static_cast<unsigned>(predicate != 0), site);
}
SIMT_SHIM int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::Here()) {
  return simt::Reduce(simt::WarpOp::kAny, mask, static_cast<int>(predicate != 0), site);
}
SIMT_SHIM int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::Here()) {
  return simt::Reduce(simt::WarpOp::kAll, mask, static_cast<int>(predicate != 0), site);
}
template <class T>
SIMT_SHIM unsigned __match_any_sync(unsigned mask, T value, simt::Site site = simt::Site::Here()) {
  return static_cast<unsigned>(simt::MeetWarp(
      {simt::WarpOp::kMatchAny, mask, simt::ToBits(value), 0, simt::kWarpLanes, site}));
}

#define SIMT_REDUCE(name, op, T)                                                   \
  SIMT_SHIM T name(unsigned mask, T value, simt::Site site = simt::Site::Here()) { \
    return simt::Reduce(simt::WarpOp::op, mask, value, site);                      \
  }
SIMT_REDUCE(__reduce_add_sync, kReduceAdd, unsigned)
SIMT_REDUCE(__reduce_add_sync, kReduceAdd, int)
SIMT_REDUCE(__reduce_min_sync, kReduceMin, unsigned)
SIMT_REDUCE(__reduce_min_sync, kReduceMinSigned, int)
SIMT_REDUCE(__reduce_max_sync, kReduceMax, unsigned)
SIMT_REDUCE(__reduce_max_sync, kReduceMaxSigned, int)
SIMT_REDUCE(__reduce_and_sync, kReduceAnd, unsigned)
SIMT_REDUCE(__reduce_or_sync, kReduceOr, unsigned)
SIMT_REDUCE(__reduce_xor_sync, kReduceXor, unsigned)
#undef SIMT_REDUCE

#endif  // KVERN_TESTS_SIMT_COLLECTIVES_H_
