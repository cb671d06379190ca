// Codes of one row, f32 to bytes and back, one pair of functions per codec.
#ifndef KVERN_KERNELS_REF_ROW_CODES_H_
#define KVERN_KERNELS_REF_ROW_CODES_H_

#include <cstddef>
#include <span>

#include "kernels/base/coding.h"

namespace kvern::ref {

// Codes y [head_dim], a row as it is coded: less its mean, rotated. y becomes what the codes leave
// over. `squared_length` is that of the row before its rotation. Codes and signs arrive zeroed. Not
// for raw16; kch4 finds its scales in place.
void CodeRow(CodecId codec, float squared_length, std::span<float> y,
             const TokenBytes<std::byte>& to);

// The way back: x [head_dim] = codes * scale (+ zero).
void RestoreRow(CodecId codec, const TokenBytes<const std::byte>& from, std::span<float> x);

// The scales of a block of kch4 from its rows [kPackedBlockTokens, head_dim].
void ScaleChannels(std::span<const float> rows, int64_t head_dim, std::byte* scales,
                   std::byte* zeros);

}  // namespace kvern::ref

#endif  // KVERN_KERNELS_REF_ROW_CODES_H_
