// A cache in device memory: keys and values of every layer, dense, filled with normals.
#ifndef KVERN_TESTS_BENCH_GPU_DEVICE_CACHE_H_
#define KVERN_TESTS_BENCH_GPU_DEVICE_CACHE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace kvern::bench {

struct CacheShape {
  int64_t layers = 32;
  int64_t kv_heads = 8;
  int64_t q_heads = 32;
  int64_t tokens = 32768;
  int64_t head_dim = 128;
  int64_t Rows() const { return layers * kv_heads; }
  // Of keys, or of values, bf16.
  int64_t Bytes() const { return Rows() * tokens * head_dim * 2; }
};

struct DeviceRows {
  Buffer memory;
  std::vector<KvRef> refs;  // [layers]
};

// Room for rows of this shape with `tokens` tokens; not filled.
absl::StatusOr<DeviceRows> MakeRows(Backend& backend, const CacheShape& shape, int64_t tokens);
// A million standard normals over and over: the period is no multiple of a row.
absl::Status FillNormal(Backend& backend, const DeviceRows& rows, uint64_t seed);

}  // namespace kvern::bench

#endif  // KVERN_TESTS_BENCH_GPU_DEVICE_CACHE_H_
