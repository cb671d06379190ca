// Owners of test keys and values, in every memory layout that a KvRef can describe.
#ifndef KVERN_TESTS_SUPPORT_HOST_KV_H_
#define KVERN_TESTS_SUPPORT_HOST_KV_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"

namespace kvern::support {

enum class TileLayout : uint8_t {
  kHeadMajor,   // a block is [kv_heads, block_tokens, head_dim]
  kTokenMajor,  // a block is [block_tokens, kv_heads, head_dim]
  kColumns,     // a block is [kv_heads, head_dim, block_tokens]: dim stride != element size
};
enum class BlockOrder : uint8_t { kInOrder, kShuffled };

struct HostKvSpec {
  DType dtype = DType::kBF16;
  int64_t layers = 1;
  int64_t kv_heads = 1;
  int64_t tokens = 0;
  int64_t head_dim = 64;
  int32_t block_tokens = 16;
  TileLayout layout = TileLayout::kHeadMajor;
  BlockOrder order = BlockOrder::kInOrder;  // kShuffled: ids permuted, unused blocks between them
  std::vector<int32_t> lengths = {};        // [kv_heads]; empty: every head holds `tokens`
};

// Owns the memory of one role of one sequence. Starts as zeros; slots that belong to no token
// (padding of the last block, blocks of no table, tokens beyond a head's length) hold NaN bits, so
// that reading them shows.
class HostKv {
 public:
  explicit HostKv(const HostKvSpec& spec, uint64_t block_seed = 1);
  HostKv(const HostKv&) = delete;
  HostKv& operator=(const HostKv&) = delete;
  HostKv(HostKv&&) = default;
  HostKv& operator=(HostKv&&) = default;

  const HostKvSpec& spec() const { return spec_; }
  LayerRefs refs() const { return refs_; }
  // All memory, for comparing what an op wrote.
  std::span<std::byte> memory() { return memory_; }

  float Get(int64_t layer, int64_t head, int64_t token, int64_t d) const;
  // Rounds to the dtype.
  void Set(int64_t layer, int64_t head, int64_t token, int64_t d, float value);
  int64_t Length(int64_t head) const { return refs_.empty() ? 0 : refs_[0].Length(head); }

 private:
  HostKvSpec spec_;
  std::vector<std::byte> memory_;
  std::vector<uint32_t> block_ids_;
  std::vector<KvRef> refs_;
};

// Standard normal values, of the same logical values for every dtype (up to rounding), layout,
// block size and order.
HostKv RandomKv(const HostKvSpec& spec, uint64_t seed);

// A spread of shapes, dtypes and layouts: empty, one token, less and more than a 256-token tile,
// head_dim with and without a tail of 16, shuffled blocks, columns, ragged lengths.
std::vector<HostKvSpec> ParitySpecs();
// "bf16 layers=2 kv_heads=3 ...": for SCOPED_TRACE.
std::string Describe(const HostKvSpec& spec);

// Dense [layers, kv_heads, tokens]: 1 with the given chance.
std::vector<uint8_t> RandomMask(const HostKvSpec& spec, double chance, uint64_t seed);
MaskView MaskOf(const HostKvSpec& spec, const std::vector<uint8_t>& mask);
std::vector<float> RandomFloats(int64_t count, uint64_t seed);
std::vector<double> RandomDoubles(int64_t count, uint64_t seed);
// Positions 0..tokens-1 shared by all layers and heads, base theta 1e4.
RotationTable RotationOf(RopeLayout layout, int32_t bands, int64_t tokens);

}  // namespace kvern::support

#endif  // KVERN_TESTS_SUPPORT_HOST_KV_H_
