// A paged pool whose every byte the test knows: what is no row holds a pattern of its address.
#ifndef KVERN_TESTS_INTEGRATION_FAULTS_CANARY_POOL_H_
#define KVERN_TESTS_INTEGRATION_FAULTS_CANARY_POOL_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/kv_ref.h"

namespace kvern::faults {

inline constexpr int64_t kLayers = 2;
inline constexpr int64_t kQHeads = 4;
inline constexpr int64_t kKvHeads = 2;
inline constexpr int64_t kElementBytes = 2;  // bf16

using Blocks = std::vector<uint32_t>;
using Image = std::vector<std::byte>;  // a copy of the whole region

// Bytes, of layer 0.
struct PlaneAt {
  int64_t base = 0;
  KvStrides strides;
};
struct PoolLayout {
  std::string name;
  int64_t head_dim = 16;
  int64_t block_tokens = 8;
  int64_t num_blocks = 64;
  int64_t layer_stride = 0;
  PlaneAt k, v;

  int64_t Offset(const PlaneAt& plane, int64_t layer, uint32_t block, int64_t head, int64_t slot,
                 int64_t dim) const {
    return plane.base + layer * layer_stride + block * plane.strides.block +
           head * plane.strides.head + slot * plane.strides.token + dim * plane.strides.dim;
  }
  // With a margin behind the last element.
  int64_t RegionBytes() const {
    int64_t end = 0;
    for (const PlaneAt& plane : {k, v}) {
      const auto last = static_cast<uint32_t>(num_blocks - 1);
      end = std::max(
          end, Offset(plane, kLayers - 1, last, kKvHeads - 1, block_tokens - 1, head_dim - 1));
    }
    return end + kElementBytes + 256;
  }
  int64_t BlocksFor(int64_t tokens) const { return (tokens + block_tokens - 1) / block_tokens; }
};

struct PoolSize {
  int64_t head_dim = 16;
  int64_t block_tokens = 8;
  int64_t num_blocks = 64;
};

inline PoolLayout Named(const char* name, const PoolSize& size) {
  PoolLayout layout;
  layout.name = name;
  layout.head_dim = size.head_dim;
  layout.block_tokens = size.block_tokens;
  layout.num_blocks = size.num_blocks;
  return layout;
}

// Keys, then values, each with padding after rows, heads, blocks and planes.
inline PoolLayout HeadMajorWithPadding(const PoolSize& size) {
  PoolLayout layout = Named("head major with padding", size);
  KvStrides strides;
  strides.dim = kElementBytes;
  strides.token = size.head_dim * kElementBytes + 16;
  strides.head = size.block_tokens * strides.token + 32;
  strides.block = kKvHeads * strides.head + 64;
  const int64_t plane_bytes = size.num_blocks * strides.block + 192;
  layout.k = {128, strides};
  layout.v = {128 + plane_bytes, strides};
  layout.layer_stride = 2 * plane_bytes;
  return layout;
}

inline PoolLayout TokenMajorWithPadding(const PoolSize& size) {
  PoolLayout layout = Named("token major with padding", size);
  KvStrides strides;
  strides.dim = kElementBytes;
  strides.head = size.head_dim * kElementBytes;
  strides.token = kKvHeads * strides.head + 32;
  strides.block = size.block_tokens * strides.token + 64;
  const int64_t plane_bytes = size.num_blocks * strides.block + 64;
  layout.k = {64, strides};
  layout.v = {64 + plane_bytes, strides};
  layout.layer_stride = 2 * plane_bytes;
  return layout;
}

// A token's key and value lie side by side.
inline PoolLayout PackedKeysAndValues(const PoolSize& size) {
  PoolLayout layout = Named("packed k and v", size);
  const int64_t row_bytes = size.head_dim * kElementBytes;
  KvStrides strides;
  strides.dim = kElementBytes;
  strides.head = 2 * row_bytes;
  strides.token = kKvHeads * strides.head;
  strides.block = size.block_tokens * strides.token + 16;
  layout.k = {64, strides};
  layout.v = {64 + row_bytes, strides};
  layout.layer_stride = size.num_blocks * strides.block + 64;
  return layout;
}

// Key tiles are [head_dim, block_tokens]; values are rows.
inline PoolLayout ColumnKeys(const PoolSize& size) {
  PoolLayout layout = Named("column-major keys", size);
  KvStrides columns;
  columns.dim = size.block_tokens * kElementBytes;
  columns.token = kElementBytes;
  columns.head = size.head_dim * columns.dim + 16;
  columns.block = kKvHeads * columns.head + 48;
  KvStrides rows;
  rows.dim = kElementBytes;
  rows.token = size.head_dim * kElementBytes;
  rows.head = size.block_tokens * rows.token;
  rows.block = kKvHeads * rows.head + 16;
  layout.k = {64, columns};
  layout.v = {64 + size.num_blocks * columns.block + 64, rows};
  layout.layer_stride = size.num_blocks * (columns.block + rows.block) + 128;
  return layout;
}

// One block holds the keys and values of every layer.
inline PoolLayout LayersInsideBlocks(const PoolSize& size) {
  PoolLayout layout = Named("layers inside blocks", size);
  KvStrides strides;
  strides.dim = kElementBytes;
  strides.token = size.head_dim * kElementBytes;
  strides.head = size.block_tokens * strides.token;
  const int64_t plane_bytes = kKvHeads * strides.head;
  layout.layer_stride = 2 * plane_bytes;
  strides.block = kLayers * layout.layer_stride + 64;
  layout.k = {0, strides};
  layout.v = {plane_bytes, strides};
  return layout;
}

inline std::vector<PoolLayout> AllLayouts(const PoolSize& size) {
  return {HeadMajorWithPadding(size), TokenMajorWithPadding(size), PackedKeysAndValues(size),
          ColumnKeys(size), LayersInsideBlocks(size)};
}

// A mapped memfd that may not shrink any more; shared with whoever gets the descriptor, and with
// children.
class SharedMemory {
 public:
  explicit SharedMemory(int64_t bytes)
      : fd_(memfd_create("canary", MFD_CLOEXEC | MFD_ALLOW_SEALING)), bytes_(bytes) {
    if (fd_ < 0 || ftruncate(fd_, bytes) != 0) return;
    if (fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) return;
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (data != MAP_FAILED) data_ = static_cast<std::byte*>(data);
  }
  ~SharedMemory() {
    if (data_ != nullptr) munmap(data_, bytes_);
    if (fd_ >= 0) close(fd_);
  }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  int Descriptor() const { return fd_; }
  std::byte* Data() const { return data_; }
  Image Now() const { return {data_, data_ + bytes_}; }
  void Restore(const Image& image) { std::memcpy(data_, image.data(), image.size()); }

 private:
  int fd_;
  int64_t bytes_;
  std::byte* data_ = nullptr;
};

// Depends on the address only, and repeats at no stride of a layout.
inline Image CanaryImage(const PoolLayout& layout) {
  Image image(layout.RegionBytes());
  for (size_t at = 0; at < image.size(); ++at) {
    image[at] = static_cast<std::byte>((at + 1) * 0x9E3779B97F4A7C15u >> 56);
  }
  return image;
}

// Normal values, the same at the same (layer, head, token) whatever the layout and the blocks.
inline void WriteSequence(const PoolLayout& layout, const Blocks& blocks, int64_t tokens,
                          uint32_t seed, Image* image) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (const PlaneAt& plane : {layout.k, layout.v}) {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      for (int64_t head = 0; head < kKvHeads; ++head) {
        for (int64_t token = 0; token < tokens; ++token) {
          for (int64_t dim = 0; dim < layout.head_dim; ++dim) {
            const BFloat16 value = FromFloat<BFloat16>(normal(random));
            const uint32_t block = blocks[token / layout.block_tokens];
            const int64_t slot = token % layout.block_tokens;
            std::memcpy(image->data() + layout.Offset(plane, layer, block, head, slot, dim), &value,
                        sizeof(value));
          }
        }
      }
    }
  }
}

// Which token of `from` each slot of `to` must hold: i32 [layers, kv_heads, max_kept].
struct KeptTokens {
  std::vector<int32_t> tokens;
  int64_t max_kept = 0;

  int32_t At(int64_t layer, int64_t head, int64_t slot) const {
    return tokens[(layer * kKvHeads + head) * max_kept + slot];
  }
};

// `before` with the kept rows of the table `from` in the slots of the table `to`, and no other byte
// changed.
inline Image Moved(const PoolLayout& layout, const Image& before, const Blocks& from,
                   const Blocks& to, const KeptTokens& kept) {
  Image after = before;
  for (const PlaneAt& plane : {layout.k, layout.v}) {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      for (int64_t head = 0; head < kKvHeads; ++head) {
        for (int64_t slot = 0; slot < kept.max_kept; ++slot) {
          const int32_t token = kept.At(layer, head, slot);
          for (int64_t dim = 0; dim < layout.head_dim; ++dim) {
            const int64_t source = layout.Offset(plane, layer, from[token / layout.block_tokens],
                                                 head, token % layout.block_tokens, dim);
            const int64_t target = layout.Offset(plane, layer, to[slot / layout.block_tokens], head,
                                                 slot % layout.block_tokens, dim);
            std::memcpy(after.data() + target, before.data() + source, kElementBytes);
          }
        }
      }
    }
  }
  return after;
}

// Marks the elements of `blocks`: 1 where a write is allowed, 0 in padding and everything else.
inline std::vector<uint8_t> ElementsOf(const PoolLayout& layout, const Blocks& blocks) {
  std::vector<uint8_t> mask(layout.RegionBytes());
  for (const PlaneAt& plane : {layout.k, layout.v}) {
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      for (const uint32_t block : blocks) {
        for (int64_t row = 0; row < kKvHeads * layout.block_tokens; ++row) {
          for (int64_t dim = 0; dim < layout.head_dim; ++dim) {
            const int64_t at = layout.Offset(plane, layer, block, row / layout.block_tokens,
                                             row % layout.block_tokens, dim);
            std::memset(mask.data() + at, 1, kElementBytes);
          }
        }
      }
    }
  }
  return mask;
}

// Empty when no byte differs; else where the first one does.
inline std::string Difference(const Image& got, const Image& want) {
  if (got == want) return "";
  const auto [at, other] = std::mismatch(got.begin(), got.end(), want.begin(), want.end());
  return "byte " + std::to_string(at - got.begin()) + " of " + std::to_string(got.size());
}

// As Difference, over bytes outside `mask`.
inline std::string DifferenceOutside(const std::vector<uint8_t>& mask, const Image& got,
                                     const Image& want) {
  for (size_t at = 0; at < got.size(); ++at) {
    if (mask[at] == 0 && got[at] != want[at]) return "byte " + std::to_string(at);
  }
  return "";
}

// Empty when every byte is as in one of the two: what a write from `low` to `high` that stopped
// anywhere leaves.
inline std::string DifferenceFromBoth(const Image& got, const Image& low, const Image& high) {
  if (got == low || got == high) return "";
  for (size_t at = 0; at < got.size(); ++at) {
    if (got[at] != low[at] && got[at] != high[at]) return "byte " + std::to_string(at);
  }
  return "";
}

// `count` ids from `first` on, every `step`-th, in an order that is not ascending.
inline Blocks ScatteredBlocks(uint32_t first, int64_t count, uint32_t step, uint32_t seed) {
  Blocks blocks;
  for (int64_t i = 0; i < count; ++i) blocks.push_back(first + static_cast<uint32_t>(i) * step);
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937(seed));
  return blocks;
}

}  // namespace kvern::faults

#endif  // KVERN_TESTS_INTEGRATION_FAULTS_CANARY_POOL_H_
