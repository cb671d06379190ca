// The rules of coding one row that every backend shares (quantization.md 3.1).
#ifndef KVERN_KERNELS_BASE_CODING_H_
#define KVERN_KERNELS_BASE_CODING_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>

#include "kernels/base/dtype.h"
#include "kernels/base/host_device.h"
#include "kernels/base/kv_ref.h"
#include "kernels/base/packed_layout.h"

namespace kvern {

static_assert(std::endian::native == std::endian::little, "the packed format is little-endian");

// Inputs beyond it are clamped; decoding to f16 clamps likewise, so that no infinity is made.
inline constexpr float kLargestCoded = 65504.0f;
inline constexpr float kI8Levels = 127.0f;

// A mean of keys as it is stored: infinity would poison every coded key, and which NaN an addition
// makes is the processor's choice, so one of them stands for all.
KVERN_HD inline Float16 RoundedMean(double total, int64_t count) {
  const double mean = count == 0 ? 0.0 : total / static_cast<double>(count);
  if (mean != mean) return {0x7E00};
  if (mean < -kLargestCoded) return FromFloat<Float16>(-kLargestCoded);
  return FromFloat<Float16>(mean > kLargestCoded ? kLargestCoded : static_cast<float>(mean));
}

// Coordinate i of a group of 8 lm4 codes stands at this bit of its 32-bit word: from the lowest
// nibble up 0, 2, 4, 6, 1, 3, 5, 7.
inline constexpr int32_t kLm4Shifts[8] = {0, 16, 4, 20, 8, 24, 12, 28};

// Scales are rounded first and used rounded, so that decoding is consistent with the codes. The
// largest f16 ends their range: a row of numbers never decodes to infinity.
struct CodeScale {
  Float16 stored;
  float value;  // of `stored`
};
KVERN_HD inline CodeScale RoundScale(float scale) {
  const Float16 stored = FromFloat<Float16>(kLargestCoded < scale ? kLargestCoded : scale);
  return {stored, ToFloat(stored)};
}
KVERN_HD inline CodeScale I8Scale(float largest) { return RoundScale(largest / kI8Levels); }
KVERN_HD inline float InverseScale(float scale) { return scale > 0.0f ? 1.0f / scale : 0.0f; }

// Brings a row of this length to unit variance per coordinate; 0 for the zero row.
KVERN_HD inline float Lm4Normalizer(float squared_length, int64_t head_dim) {
  if (!(squared_length > 0.0f)) return 0.0f;
  return std::sqrt(static_cast<float>(head_dim)) / std::sqrt(squared_length);
}
// Norm-matching: the decoded row has the length of the row.
KVERN_HD inline CodeScale Lm4Scale(float squared_length, float squared_code_length) {
  return RoundScale(std::sqrt(squared_length) / std::sqrt(squared_code_length));
}

KVERN_HD inline bool UsesHadamard(const PackedRow& row) {
  return AlwaysRotates(static_cast<CodecId>(row.codec)) || (row.flags & kFlagHadamard) != 0;
}
KVERN_HD inline bool UsesRopeMean(const PackedRow& row) { return (row.flags & kFlagRopeMean) != 0; }

// A mean that is not a number would poison every row that it is taken from.
KVERN_HD inline float FiniteMean(Float16 mean) {
  const float value = ToFloat(mean);
  return std::isfinite(value) ? value : 0.0f;
}

// The row names a known codec, a head of `rows`, 1..64 tokens (kch4: 64), and a block inside
// `packed_bytes`. Every difference is taken on the side that cannot overflow.
inline bool IsSound(const PackedRow& row, std::span<const KvRef> rows, int64_t packed_bytes) {
  const CodecId codec = static_cast<CodecId>(row.codec);
  const bool known = row.codec >= static_cast<int64_t>(CodecId::kRaw16) &&
                     row.codec <= static_cast<int64_t>(CodecId::kSfv3);
  if (!known || row.layer < 0 || row.layer >= std::ssize(rows)) return false;
  const KvRef& ref = rows[row.layer];
  if (row.kv_head < 0 || row.kv_head >= ref.kv_heads) return false;
  if (row.tokens < 1 || row.tokens > kPackedBlockTokens || row.byte_offset < 0) return false;
  if (NeedsFullBlock(codec) && row.tokens != kPackedBlockTokens) return false;
  const int64_t bytes = BlockBytes(codec, ref.dtype, row.tokens, ref.head_dim);
  return bytes <= packed_bytes && row.byte_offset <= packed_bytes - bytes;
}
inline bool SlotsEndBy(const PackedRow& row, int64_t slots) {
  return row.first_slot >= 0 && row.tokens <= slots && row.first_slot <= slots - row.tokens;
}

// The planes of one row of the packed table.
struct PackedPlanes {
  int64_t codes = 0;           // byte offset into `packed`
  int64_t code_row_bytes = 0;  // of one token
  int64_t scales = 0;          // byte offset; unused by raw16
  int64_t signs = 0;           // byte offset; only sfv3 has them
  int64_t zeros = 0;           // byte offset; only affine codes have them
  int64_t sign_row_bytes = 0;
  int64_t scale_row_bytes = 0;  // of one token, in SCALE and in ZERO; 0 for kch4
};
inline PackedPlanes PlanesOf(const PackedRow& row, const KvRef& ref) {
  const CodecId codec = static_cast<CodecId>(row.codec);
  PackedPlanes planes;
  planes.codes = row.byte_offset;
  planes.code_row_bytes = CodeRowBytes(codec, ref.dtype, ref.head_dim);
  planes.scales = row.byte_offset + ScaleOffset(codec, ref.dtype, row.tokens, ref.head_dim);
  planes.signs = row.byte_offset + SignOffset(codec, ref.dtype, row.tokens, ref.head_dim);
  planes.zeros = row.byte_offset + ZeroOffset(codec, ref.dtype, row.tokens, ref.head_dim);
  planes.sign_row_bytes = SignRowBytes(codec, ref.head_dim);
  planes.scale_row_bytes = TokenScales(codec, ref.head_dim) * int64_t{sizeof(Float16)};
  return planes;
}

// Where the bytes of one token lie; planes that the codec lacks are not to be touched. The scales
// and zeros of kch4 are those of the block.
template <class Byte>
struct TokenBytes {
  Byte* codes;
  Byte* signs;
  Byte* scales;
  Byte* zeros;
};
template <class Byte>
TokenBytes<Byte> BytesOf(const PackedPlanes& planes, Byte* packed, int64_t token) {
  return {packed + planes.codes + token * planes.code_row_bytes,
          packed + planes.signs + token * planes.sign_row_bytes,
          packed + planes.scales + token * planes.scale_row_bytes,
          packed + planes.zeros + token * planes.scale_row_bytes};
}

}  // namespace kvern

#endif  // KVERN_KERNELS_BASE_CODING_H_
