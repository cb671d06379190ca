// The layer that ops are measured on: 32768 tokens, 8 KV heads of 128, bf16, in shuffled blocks.
#ifndef KVERN_TESTS_BENCH_LAYER_H_
#define KVERN_TESTS_BENCH_LAYER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "tests/bench/measure.h"
#include "tests/support/host_kv.h"

namespace kvern::bench {

inline constexpr int64_t kTokens = 32768;
inline constexpr int64_t kKvHeads = 8;
inline constexpr int64_t kQHeads = 32;
inline constexpr int64_t kHeadDim = 128;
inline constexpr int32_t kBands = kHeadDim / 2;
inline constexpr int64_t kBlockTokens = 16;

// Bytes of what ops read and write.
inline constexpr int64_t kKeyBytes = kKvHeads * kTokens * kHeadDim * 2;
inline constexpr int64_t kScoreBytes = kKvHeads * kTokens * 4;
inline constexpr int64_t kAngleBytes = kTokens * kBands * 2 * 4;  // read once by all heads

// Memory like a pool's, uninitialised.
support::HostKv PagedKv(int64_t tokens);
// A million standard normals over and over: the period is no multiple of a row.
void FillNormal(support::HostKv& kv, uint64_t seed);

struct Layer {
  support::HostKv keys;
  support::HostKv values;
  RotationTable rotation;
  std::vector<float> scores;  // [kv_heads, tokens]
  std::vector<uint8_t> all;   // [tokens] of 1, shared by heads
  std::vector<uint8_t> none;  // [tokens] of 0
  MaskView All() const { return Shared(all); }
  MaskView None() const { return Shared(none); }

 private:
  static MaskView Shared(const std::vector<uint8_t>& row) {
    return {row.data(), {1, kKvHeads, kTokens}, {0, 0, 1}};
  }
};
// Made at the first call, for all benchmarks.
Layer& TheLayer();

// One of each thread count, kept.
Backend& BackendOf(int threads);
StreamRead& ReadOf(int threads);

}  // namespace kvern::bench

#endif  // KVERN_TESTS_BENCH_LAYER_H_
