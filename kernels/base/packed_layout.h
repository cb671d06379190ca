// The packed block format: codecs, planes and their sizes, in closed form.
//
// A block holds up to 64 tokens of one (layer, kv_head, role), without a header: the row of the
// packed table says codec, flags, tokens and offset. Planes: CODES, then SCALE; each starts 16-byte
// aligned, and a short last block has planes sized for its own tokens.
#ifndef KVERN_KERNELS_BASE_PACKED_LAYOUT_H_
#define KVERN_KERNELS_BASE_PACKED_LAYOUT_H_

#include <cstdint>
#include <type_traits>

#include "kernels/base/dtype.h"
#include "kernels/base/host_device.h"

namespace kvern {

enum class CodecId : uint8_t {
  kRaw16 = 0,  // bytes as they were, at the cache's own dtype
  kI8t = 1,    // symmetric int8 per (token, head), f16 scale
  kLm4 = 5,    // Hadamard rotation, 16 Lloyd-Max levels, norm-matching f16 scale
};

enum CodecFlags : uint8_t {
  kFlagHadamard = 1,  // H: rotate by the signed Hadamard matrix before coding
  kFlagRopeMean = 2,  // rm: code the key minus its rotated mean pre-RoPE key
};

enum class Role : uint8_t { kKey = 0, kValue = 1 };

struct CodecSpec {
  CodecId id = CodecId::kRaw16;
  uint8_t flags = 0;
  bool operator==(const CodecSpec& other) const { return id == other.id && flags == other.flags; }
};

inline constexpr int32_t kPackedBlockTokens = 64;
inline constexpr int64_t kPlaneAlign = 16;
inline constexpr int64_t kPackedBlockAlign = 128;

KVERN_HD constexpr int64_t AlignUp(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

// Bytes of one token's codes.
KVERN_HD constexpr int64_t CodeRowBytes(CodecId codec, DType dtype, int64_t head_dim) {
  switch (codec) {
    case CodecId::kRaw16:
      return head_dim * SizeOf(dtype);
    case CodecId::kI8t:
      return head_dim;
    case CodecId::kLm4:
      return head_dim / 2;
  }
  return 0;
}
KVERN_HD constexpr bool HasScale(CodecId codec) { return codec != CodecId::kRaw16; }

// Byte offset of the SCALE plane (f16 [tokens]) inside a block.
KVERN_HD constexpr int64_t ScaleOffset(CodecId codec, DType dtype, int64_t tokens,
                                       int64_t head_dim) {
  return AlignUp(tokens * CodeRowBytes(codec, dtype, head_dim), kPlaneAlign);
}
// Sum over planes of align16(plane): the figure of every byte account.
KVERN_HD constexpr int64_t BlockBytes(CodecId codec, DType dtype, int64_t tokens,
                                      int64_t head_dim) {
  return ScaleOffset(codec, dtype, tokens, head_dim) +
         (HasScale(codec) ? AlignUp(tokens * 2, kPlaneAlign) : 0);
}
static_assert(BlockBytes(CodecId::kI8t, DType::kBF16, 64, 128) == 8320);
static_assert(BlockBytes(CodecId::kLm4, DType::kBF16, 64, 128) == 4224);
static_assert(BlockBytes(CodecId::kLm4, DType::kBF16, 64, 64) == 2176);
static_assert(BlockBytes(CodecId::kRaw16, DType::kBF16, 64, 64) == 8192);

// One row of `packed_table`, little-endian, as it leaves the process (ruling 13).
struct PackedRow {
  int64_t layer;
  int64_t kv_head;
  int64_t role;         // 0 key, 1 value
  int64_t codec;        // CodecId
  int64_t flags;        // CodecFlags
  int64_t first_slot;   // index of its first token among the kept tokens of this (layer, kv_head)
  int64_t tokens;       // 1..64
  int64_t byte_offset;  // into `packed`, a multiple of kPackedBlockAlign
};
static_assert(sizeof(PackedRow) == 64 && std::is_trivially_copyable_v<PackedRow>);

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_PACKED_LAYOUT_H_
