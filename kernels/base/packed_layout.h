// The packed block format: codecs, planes and their sizes, in closed form.
//
// A block holds up to 64 tokens of one (layer, kv_head, role), without a header: the row of the
// packed table says codec, flags, tokens and offset. Planes: CODES, SIGN, SCALE, ZERO, of which a
// codec has some; each starts 16-byte aligned, and a short last block has planes sized for its own
// tokens. A block of kch4 is never short: what is left over is raw16.
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
  kFp8t = 2,   // e4m3 per (token, head), f16 scale = largest / 448
  kKch4 = 3,   // affine int4 per channel over 64 tokens, f16 scale and zero
  kI4t = 4,    // affine int4 per token and group of coordinates, f16 scale and zero
  kLm4 = 5,    // Hadamard rotation, 16 Lloyd-Max levels, norm-matching f16 scale
  kSfv2 = 6,   // Hadamard rotation, signs and one of 16 vectors per 4 coordinates, unbiased scale
  kSfv3 = 7,   // the same with 256 vectors and a norm-matching scale
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

// Codes that are defined on rotated coordinates.
KVERN_HD constexpr bool AlwaysRotates(CodecId codec) {
  return codec == CodecId::kLm4 || codec == CodecId::kSfv2 || codec == CodecId::kSfv3;
}
// Codes of whole blocks of 64 tokens only.
KVERN_HD constexpr bool NeedsFullBlock(CodecId codec) { return codec == CodecId::kKch4; }
// Codes with an f16 zero beside every scale.
KVERN_HD constexpr bool IsAffine(CodecId codec) {
  return codec == CodecId::kKch4 || codec == CodecId::kI4t;
}

// Coordinates of i4t that share a scale: 64, or all where 64 does not divide head_dim.
KVERN_HD constexpr int64_t I4tGroup(int64_t head_dim) { return head_dim % 64 == 0 ? 64 : head_dim; }

// Bytes of one token's codes.
KVERN_HD constexpr int64_t CodeRowBytes(CodecId codec, DType dtype, int64_t head_dim) {
  switch (codec) {
    case CodecId::kRaw16:
      return head_dim * SizeOf(dtype);
    case CodecId::kI8t:
    case CodecId::kFp8t:
      return head_dim;
    case CodecId::kKch4:
    case CodecId::kI4t:
    case CodecId::kLm4:
      return head_dim / 2;
    case CodecId::kSfv2:
    case CodecId::kSfv3:
      return head_dim / 4;
  }
  return 0;
}
// Bytes of one token in the SIGN plane.
KVERN_HD constexpr int64_t SignRowBytes(CodecId codec, int64_t head_dim) {
  return codec == CodecId::kSfv3 ? head_dim / 8 : 0;
}
// Scales of one token; those of kch4 belong to the block.
KVERN_HD constexpr int64_t TokenScales(CodecId codec, int64_t head_dim) {
  if (codec == CodecId::kRaw16 || codec == CodecId::kKch4) return 0;
  return codec == CodecId::kI4t && head_dim % 64 == 0 ? head_dim / 64 : 1;
}

// Byte offsets inside a block, of the SIGN plane and of the SCALE plane: f16 [tokens], kch4
// [head_dim], i4t [tokens, groups].
KVERN_HD constexpr int64_t SignOffset(CodecId codec, DType dtype, int64_t tokens,
                                      int64_t head_dim) {
  return AlignUp(tokens * CodeRowBytes(codec, dtype, head_dim), kPlaneAlign);
}
KVERN_HD constexpr int64_t ScaleOffset(CodecId codec, DType dtype, int64_t tokens,
                                       int64_t head_dim) {
  return SignOffset(codec, dtype, tokens, head_dim) +
         AlignUp(tokens * SignRowBytes(codec, head_dim), kPlaneAlign);
}
// Of the SCALE plane, and of the ZERO plane of an affine code.
KVERN_HD constexpr int64_t ScaleBytes(CodecId codec, int64_t tokens, int64_t head_dim) {
  const int64_t scales = codec == CodecId::kKch4 ? head_dim : tokens * TokenScales(codec, head_dim);
  return AlignUp(2 * scales, kPlaneAlign);
}
KVERN_HD constexpr int64_t ZeroOffset(CodecId codec, DType dtype, int64_t tokens,
                                      int64_t head_dim) {
  return ScaleOffset(codec, dtype, tokens, head_dim) + ScaleBytes(codec, tokens, head_dim);
}
// Sum over planes of align16(plane): the figure of every byte account.
KVERN_HD constexpr int64_t BlockBytes(CodecId codec, DType dtype, int64_t tokens,
                                      int64_t head_dim) {
  return ZeroOffset(codec, dtype, tokens, head_dim) +
         (IsAffine(codec) ? ScaleBytes(codec, tokens, head_dim) : 0);
}
static_assert(BlockBytes(CodecId::kI8t, DType::kBF16, 64, 128) == 8320);
static_assert(BlockBytes(CodecId::kLm4, DType::kBF16, 64, 128) == 4224);
static_assert(BlockBytes(CodecId::kLm4, DType::kBF16, 64, 64) == 2176);
static_assert(BlockBytes(CodecId::kRaw16, DType::kBF16, 64, 64) == 8192);
static_assert(BlockBytes(CodecId::kFp8t, DType::kBF16, 64, 128) == 8320);
static_assert(BlockBytes(CodecId::kKch4, DType::kBF16, 64, 128) == 4608);
static_assert(BlockBytes(CodecId::kI4t, DType::kBF16, 64, 128) == 4608);
static_assert(BlockBytes(CodecId::kSfv3, DType::kBF16, 64, 128) == 3200);
static_assert(BlockBytes(CodecId::kSfv3, DType::kBF16, 64, 64) == 1664);
static_assert(BlockBytes(CodecId::kSfv2, DType::kBF16, 64, 128) == 2176);
static_assert(BlockBytes(CodecId::kSfv2, DType::kBF16, 64, 64) == 1152);

// What a block of `tokens` is coded with when its head's codec is `codec`.
constexpr CodecSpec CodecOfBlock(CodecSpec codec, int64_t tokens) {
  return NeedsFullBlock(codec.id) && tokens < kPackedBlockTokens ? CodecSpec{} : codec;
}

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
