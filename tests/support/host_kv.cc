// Lays one logical tensor out in any block order and stride, with NaN wherever no token lives.
#include "tests/support/host_kv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "kernels/base/status_macros.h"

namespace kvern::support {
namespace {

constexpr int64_t kSpareBlocks = 3;

int64_t BlockCount(const HostKvSpec& spec) {
  return (spec.tokens + spec.block_tokens - 1) / spec.block_tokens;
}

KvStrides StridesOf(const HostKvSpec& spec) {
  const int64_t size = SizeOf(spec.dtype);
  KvStrides strides;
  strides.block = spec.kv_heads * spec.block_tokens * spec.head_dim * size;
  switch (spec.layout) {
    case TileLayout::kHeadMajor:
      strides.head = spec.block_tokens * spec.head_dim * size;
      strides.token = spec.head_dim * size;
      strides.dim = size;
      break;
    case TileLayout::kTokenMajor:
      strides.head = spec.head_dim * size;
      strides.token = spec.kv_heads * spec.head_dim * size;
      strides.dim = size;
      break;
    case TileLayout::kColumns:
      strides.head = spec.block_tokens * spec.head_dim * size;
      strides.token = size;
      strides.dim = spec.block_tokens * size;
      break;
  }
  return strides;
}

}  // namespace

HostKv::HostKv(const HostKvSpec& spec, uint64_t block_seed) : spec_(spec) {
  KVERN_CHECK(spec.block_tokens > 0);
  KVERN_CHECK(spec.lengths.empty() || static_cast<int64_t>(spec.lengths.size()) == spec.kv_heads);
  const int64_t blocks = BlockCount(spec);
  const KvStrides strides = StridesOf(spec);
  block_ids_.resize(blocks + kSpareBlocks);
  std::iota(block_ids_.begin(), block_ids_.end(), 0u);
  if (spec.order == BlockOrder::kShuffled) {
    std::mt19937_64 random(block_seed);
    std::shuffle(block_ids_.begin(), block_ids_.end(), random);
  }
  const int64_t layer_bytes = (blocks + kSpareBlocks) * strides.block;
  memory_.assign(spec.layers * layer_bytes, std::byte{0xFF});
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    KvRef ref;
    ref.dtype = spec.dtype;
    ref.kv_heads = static_cast<int32_t>(spec.kv_heads);
    ref.head_dim = static_cast<int32_t>(spec.head_dim);
    ref.tokens = spec.tokens;
    ref.block_tokens = spec.block_tokens;
    ref.base = memory_.data() + layer * layer_bytes;
    ref.strides = strides;
    ref.block_ids = block_ids_.data();
    ref.lengths = spec_.lengths.empty() ? nullptr : spec_.lengths.data();
    refs_.push_back(ref);
    for (int64_t head = 0; head < spec.kv_heads; ++head) {
      for (int64_t token = 0; token < ref.Length(head); ++token) {
        for (int64_t d = 0; d < spec.head_dim; ++d) Set(layer, head, token, d, 0.0f);
      }
    }
  }
}

float HostKv::Get(int64_t layer, int64_t head, int64_t token, int64_t d) const {
  const KvRef& ref = refs_[layer];
  const std::byte* at = ref.Address(head, token) + d * ref.strides.dim;
  return VisitDType(spec_.dtype, [&](auto tag) {
    typename decltype(tag)::type value;
    std::memcpy(&value, at, sizeof(value));
    return ToFloat(value);
  });
}

void HostKv::Set(int64_t layer, int64_t head, int64_t token, int64_t d, float value) {
  const KvRef& ref = refs_[layer];
  std::byte* at = ref.Address(head, token) + d * ref.strides.dim;
  VisitDType(spec_.dtype, [&](auto tag) {
    const auto rounded = FromFloat<typename decltype(tag)::type>(value);
    std::memcpy(at, &rounded, sizeof(rounded));
  });
}

HostKv RandomKv(const HostKvSpec& spec, uint64_t seed) {
  HostKv kv(spec, seed);
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    for (int64_t head = 0; head < spec.kv_heads; ++head) {
      for (int64_t token = 0; token < kv.Length(head); ++token) {
        for (int64_t d = 0; d < spec.head_dim; ++d) kv.Set(layer, head, token, d, normal(random));
      }
    }
  }
  return kv;
}

std::vector<HostKvSpec> ParitySpecs() {
  using enum TileLayout;
  using enum BlockOrder;
  return {
      {DType::kBF16, 1, 2, 0, 64, 16, kHeadMajor, kInOrder, {}},
      {DType::kF32, 1, 1, 1, 8, 16, kHeadMajor, kInOrder, {}},
      {DType::kBF16, 2, 2, 300, 64, 16, kHeadMajor, kShuffled, {}},
      {DType::kF16, 2, 3, 33, 24, 7, kTokenMajor, kShuffled, {}},
      {DType::kF32, 1, 2, 530, 40, 32, kColumns, kShuffled, {}},
      {DType::kBF16, 1, 3, 270, 128, 256, kHeadMajor, kInOrder, {270, 0, 257}},
      {DType::kF16, 1, 2, 64, 80, 1, kColumns, kShuffled, {17, 64}},
  };
}

std::string Describe(const HostKvSpec& spec) {
  static constexpr const char* kLayouts[] = {"head-major", "token-major", "columns"};
  return absl::StrCat(Name(spec.dtype), " layers=", spec.layers, " kv_heads=", spec.kv_heads,
                      " tokens=", spec.tokens, " head_dim=", spec.head_dim,
                      " block_tokens=", spec.block_tokens, " ",
                      kLayouts[static_cast<int>(spec.layout)],
                      spec.order == BlockOrder::kShuffled ? " shuffled" : "",
                      spec.lengths.empty() ? "" : " ragged");
}

std::vector<uint8_t> RandomMask(const HostKvSpec& spec, double chance, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::bernoulli_distribution coin(chance);
  std::vector<uint8_t> mask(spec.layers * spec.kv_heads * spec.tokens);
  for (uint8_t& bit : mask) bit = coin(random) ? 1 : 0;
  return mask;
}

MaskView MaskOf(const HostKvSpec& spec, const std::vector<uint8_t>& mask) {
  return DenseView(mask.data(), spec.layers, spec.kv_heads, spec.tokens);
}

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<double> RandomDoubles(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> values(count);
  for (double& value : values) value = normal(random);
  return values;
}

RotationTable RotationOf(RopeLayout layout, int32_t bands, int64_t tokens) {
  RotationTable table;
  table.layout = layout;
  table.bands = bands;
  struct Angles {
    std::vector<float> cosine, sine;
  };
  const auto angles = std::make_shared<Angles>();
  for (int64_t position = 0; position < tokens; ++position) {
    table.row_of_slot.push_back(static_cast<int32_t>(position));
    for (int32_t band = 0; band < bands; ++band) {
      const double phase = position * std::pow(1e4, -double{1} * band / bands);
      angles->cosine.push_back(static_cast<float>(std::cos(phase)));
      angles->sine.push_back(static_cast<float>(std::sin(phase)));
    }
  }
  table.cosine = angles->cosine;
  table.sine = angles->sine;
  table.angles = angles;
  return table;
}

}  // namespace kvern::support
