// The layer that ops are measured on: keys and values in shuffled blocks, as a paged pool has them.
#ifndef KVERN_CLIENT_CLI_BENCH_LAYER_H_
#define KVERN_CLIENT_CLI_BENCH_LAYER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace kvern::bench {

inline constexpr int32_t kBlockTokens = 16;

// One layer. Bytes are those that an op must read or write.
struct Shape {
  int64_t tokens = 32768;
  int64_t kv_heads = 8;
  int64_t head_dim = 128;  // even
  DType dtype = DType::kBF16;
  int32_t Bands() const { return static_cast<int32_t>(head_dim / 2); }
  int64_t RowBytes() const { return head_dim * SizeOf(dtype); }
  int64_t KeyBytes() const { return kv_heads * tokens * RowBytes(); }  // or of values
  int64_t ScoreBytes() const { return kv_heads * tokens * 4; }
  int64_t AngleBytes() const { return tokens * Bands() * 2 * 4; }  // read once by all heads
};

// Owns the keys or the values: blocks of [kv_heads, 16, head_dim] whose order is shuffled.
class PagedRows {
 public:
  // Memory for `tokens` tokens of a layer like this; its contents are unspecified.
  PagedRows(const Shape& shape, int64_t tokens);
  PagedRows(PagedRows&&) = default;
  PagedRows& operator=(PagedRows&&) = default;

  LayerRefs refs() const { return {&ref_, 1}; }
  std::span<std::byte> memory() { return {memory_[0].bytes, static_cast<size_t>(bytes_)}; }
  std::span<const std::byte> memory() const {
    return {memory_[0].bytes, static_cast<size_t>(bytes_)};
  }
  // At most a million standard normals over and over: the period is no multiple of a row.
  void FillNormal(uint64_t seed);

 private:
  // Memory of pools is mapped, so that it starts where a page does.
  struct alignas(4096) Page {
    std::byte bytes[4096];
  };

  int64_t bytes_ = 0;
  std::unique_ptr<Page[]> memory_;
  std::vector<uint32_t> block_ids_;
  KvRef ref_;
};

struct Layer {
  explicit Layer(const Shape& shape);
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  const Shape shape;
  PagedRows keys;
  PagedRows values;
  RotationTable rotation;            // positions 0 .. tokens - 1, theta 1e4
  std::vector<float> normals;        // [kv_heads, tokens] scores to select by
  mutable std::vector<float> store;  // [kv_heads, tokens] where scorers write
  std::vector<uint8_t> ones;         // [tokens], a mask shared by all heads
  std::vector<uint8_t> zeros;        // the same

  MaskView All() const { return Shared(ones); }
  MaskView None() const { return Shared(zeros); }
  ConstScoreView Scores() const {
    return DenseView(normals.data(), int64_t{1}, shape.kv_heads, shape.tokens);
  }
  ScoreView Out() const {
    return DenseView(store.data(), int64_t{1}, shape.kv_heads, shape.tokens);
  }

 private:
  MaskView Shared(const std::vector<uint8_t>& row) const {
    return {row.data(), {1, shape.kv_heads, shape.tokens}, {0, 0, 1}};
  }
};

std::vector<float> NormalFloats(int64_t count, uint64_t seed);
std::vector<double> NormalDoubles(int64_t count, uint64_t seed);

}  // namespace kvern::bench

#endif  // KVERN_CLIENT_CLI_BENCH_LAYER_H_
