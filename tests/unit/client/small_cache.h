// A cache file small enough to read by eye.
#ifndef KVERN_TESTS_UNIT_CLIENT_SMALL_CACHE_H_
#define KVERN_TESTS_UNIT_CLIENT_SMALL_CACHE_H_

#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "formats/safetensors.h"

namespace kvern {

// [layers, kv_heads, tokens, head_dim] of f32 that owns its bytes; seed 7.
struct SmallCache {
  int64_t layers = 2, kv_heads = 2, tokens = 5, head_dim = 8;
  std::vector<float> k, v;

  explicit SmallCache(int64_t token_count = 5) : tokens(token_count) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    k.resize(layers * kv_heads * tokens * head_dim);
    v.resize(k.size());
    for (float& value : k) value = normal(random);
    for (float& value : v) value = normal(random);
  }

  template <class T>
  static std::span<const std::byte> Bytes(const std::vector<T>& values) {
    return std::as_bytes(std::span(values));
  }
  formats::Safetensors File() const {
    const std::vector<int64_t> shape = {layers, kv_heads, tokens, head_dim};
    formats::Safetensors file;
    file.tensors["k"] = {"F32", shape, Bytes(k)};
    file.tensors["v"] = {"F32", shape, Bytes(v)};
    file.metadata["format"] = "kvern-cache/1";
    file.metadata["q_heads"] = "4";
    file.metadata["rope_theta"] = "10000";
    return file;
  }
};

}  // namespace kvern

#endif  // KVERN_TESTS_UNIT_CLIENT_SMALL_CACHE_H_
