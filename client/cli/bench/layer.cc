// Standard normals: ops meet no zeros and no denormals, so none of them has it easier than in use.
#include "client/cli/bench/layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "server/pipeline/rotation.h"

namespace kvern::bench {
namespace {

constexpr int64_t kPeriod = 1000003;
constexpr int64_t kSpareBlocks = 3;

template <class T>
std::vector<T> Normals(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<T> normal;
  std::vector<T> values(count);
  for (T& value : values) value = normal(random);
  return values;
}

RotationTable ConsecutiveRotation(const Shape& shape) {
  pipeline::RopeSpec rope;
  for (int32_t band = 0; band < shape.Bands(); ++band) {
    rope.inv_freq.push_back(static_cast<float>(std::pow(1e4, -double{1} * band / shape.Bands())));
  }
  return pipeline::BuildConsecutiveRotation(rope, shape.tokens);
}

}  // namespace

PagedRows::PagedRows(const Shape& shape, int64_t tokens) {
  const int64_t blocks = (tokens + kBlockTokens - 1) / kBlockTokens + kSpareBlocks;
  block_ids_.resize(blocks);
  std::iota(block_ids_.begin(), block_ids_.end(), 0u);
  std::mt19937_64 random(/*seed=*/1);
  std::shuffle(block_ids_.begin(), block_ids_.end(), random);
  ref_.dtype = shape.dtype;
  ref_.kv_heads = static_cast<int32_t>(shape.kv_heads);
  ref_.head_dim = static_cast<int32_t>(shape.head_dim);
  ref_.tokens = tokens;
  ref_.block_tokens = kBlockTokens;
  ref_.strides.dim = SizeOf(shape.dtype);
  ref_.strides.token = shape.RowBytes();
  ref_.strides.head = kBlockTokens * ref_.strides.token;
  ref_.strides.block = shape.kv_heads * ref_.strides.head;
  ref_.block_ids = block_ids_.data();
  bytes_ = blocks * ref_.strides.block;
  memory_ = std::make_unique<Page[]>((bytes_ + sizeof(Page) - 1) / sizeof(Page));
  ref_.base = memory_[0].bytes;
}

void PagedRows::FillNormal(uint64_t seed) {
  const int64_t size = SizeOf(ref_.dtype);
  const std::vector<float> normals = Normals<float>(std::min(kPeriod, bytes_ / size), seed);
  std::byte* const begin = ref_.base;
  VisitDType(ref_.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (size_t at = 0; at < normals.size(); ++at) {
      const T rounded = FromFloat<T>(normals[at]);
      std::memcpy(begin + at * sizeof(T), &rounded, sizeof(T));
    }
  });
  const int64_t period = static_cast<int64_t>(normals.size()) * size;
  for (int64_t at = period; at < bytes_; at += period) {
    std::memcpy(begin + at, begin, std::min(period, bytes_ - at));
  }
}

Layer::Layer(const Shape& of)
    : shape(of),
      keys(of, of.tokens),
      values(of, of.tokens),
      rotation(ConsecutiveRotation(of)),
      normals(Normals<float>(of.kv_heads * of.tokens, /*seed=*/3)),
      store(of.kv_heads * of.tokens),
      ones(of.tokens, 1),
      zeros(of.tokens, 0) {
  keys.FillNormal(/*seed=*/1);
  values.FillNormal(/*seed=*/2);
}

std::vector<float> NormalFloats(int64_t count, uint64_t seed) {
  return Normals<float>(count, seed);
}
std::vector<double> NormalDoubles(int64_t count, uint64_t seed) {
  return Normals<double>(count, seed);
}

}  // namespace kvern::bench
