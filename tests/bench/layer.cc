// Everything lives to the end of the process: benchmarks share it.
#include "tests/bench/layer.h"

#include <cstring>
#include <map>
#include <memory>

#include "kernels/backends.h"
#include "kernels/base/status_macros.h"

namespace kvern::bench {

support::HostKv PagedKv(int64_t tokens) {
  support::HostKvSpec spec;
  spec.kv_heads = kKvHeads;
  spec.tokens = tokens;
  spec.head_dim = kHeadDim;
  spec.block_tokens = kBlockTokens;
  spec.order = support::BlockOrder::kShuffled;
  return support::HostKv(spec);
}

void FillNormal(support::HostKv& kv, uint64_t seed) {
  constexpr int64_t kPeriod = 1000003;
  std::vector<BFloat16> normals;
  normals.reserve(kPeriod);
  for (const float value : support::RandomFloats(kPeriod, seed)) {
    normals.push_back(FromFloat<BFloat16>(value));
  }
  const std::span<std::byte> memory = kv.memory();
  const size_t period_bytes = normals.size() * sizeof(BFloat16);
  for (size_t at = 0; at < memory.size(); at += period_bytes) {
    std::memcpy(memory.data() + at, normals.data(), std::min(period_bytes, memory.size() - at));
  }
}

Layer& TheLayer() {
  static Layer& layer = *[] {
    auto* made = new Layer{PagedKv(kTokens),
                           PagedKv(kTokens),
                           support::RotationOf(RopeLayout::kHalf, kBands, kTokens),
                           support::RandomFloats(kKvHeads * kTokens, /*seed=*/3),
                           std::vector<uint8_t>(kTokens, 1),
                           std::vector<uint8_t>(kTokens, 0)};
    FillNormal(made->keys, /*seed=*/1);
    FillNormal(made->values, /*seed=*/2);
    return made;
  }();
  return layer;
}

Backend& BackendOf(int threads) {
  static auto& backends = *new std::map<int, std::unique_ptr<Backend>>;
  std::unique_ptr<Backend>& backend = backends[threads];
  if (backend == nullptr) backend = MakeBackend({.name = "cpu", .threads = threads}).value();
  return *backend;
}

StreamRead& ReadOf(int threads) {
  static auto& reads = *new std::map<int, std::unique_ptr<StreamRead>>;
  std::unique_ptr<StreamRead>& read = reads[threads];
  if (read == nullptr) read = std::make_unique<StreamRead>(TheLayer().keys.memory(), threads);
  return *read;
}

}  // namespace kvern::bench
