// Scales are rounded first and used rounded; each code then goes by itself.
#include "kernels/ref/row_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/base/affine_rules.h"
#include "kernels/base/fp8.h"
#include "kernels/base/lanes.h"
#include "kernels/base/lm4_table.h"
#include "kernels/base/sfv_rules.h"

namespace kvern::ref {
namespace {

void PutHalf(std::byte* to, int64_t index, const CodeScale& scale) {
  std::memcpy(to + index * sizeof(Float16), &scale.stored, sizeof(Float16));
}
float HalfAt(const std::byte* from, int64_t index) {
  Float16 half;
  std::memcpy(&half, from + index * sizeof(half), sizeof(half));
  return ToFloat(half);
}

float LargestMagnitude(std::span<const float> y) {
  float largest = 0.0f;
  for (const float value : y) largest = std::max(largest, std::fabs(value));
  return largest;
}

CodeScale CodeI8(std::span<float> y, std::byte* codes) {
  const CodeScale scale = I8Scale(LargestMagnitude(y));
  const float inverse = InverseScale(scale.value);
  for (size_t i = 0; i < y.size(); ++i) {
    const float code = std::clamp(std::nearbyint(y[i] * inverse), -kI8Levels, kI8Levels);
    codes[i] = static_cast<std::byte>(static_cast<int8_t>(code));
    y[i] = std::fma(-scale.value, code, y[i]);
  }
  return scale;
}

CodeScale CodeFp8(std::span<float> y, std::byte* codes) {
  const CodeScale scale = Fp8Scale(LargestMagnitude(y));
  const float inverse = InverseScale(scale.value);
  for (size_t i = 0; i < y.size(); ++i) {
    const uint8_t code = E4m3FromFloat(y[i] * inverse);
    codes[i] = static_cast<std::byte>(code);
    y[i] = std::fma(-scale.value, FloatFromE4m3(code), y[i]);
  }
  return scale;
}

// Nibbles in the order of kLm4Shifts, which the affine codes share.
void PutNibble(std::byte* codes, int64_t d, uint32_t code) {
  uint32_t word;
  std::byte* const at = codes + d / 8 * 4;
  std::memcpy(&word, at, sizeof(word));
  word |= code << kLm4Shifts[d % 8];
  std::memcpy(at, &word, sizeof(word));
}
uint32_t NibbleAt(const std::byte* codes, int64_t d) {
  uint32_t word;
  std::memcpy(&word, codes + d / 8 * 4, sizeof(word));
  return word >> kLm4Shifts[d % 8] & 15;
}

CodeScale CodeLm4(float squared_length, std::span<float> y, std::byte* codes) {
  const int64_t head_dim = std::ssize(y);
  const float normalizer = Lm4Normalizer(squared_length, head_dim);
  if (normalizer == 0.0f) return RoundScale(0.0f);
  std::vector<float> levels(head_dim);
  for (int64_t d = 0; d < head_dim; ++d) {
    const float value = y[d] * normalizer;
    uint32_t code = 0;
    for (int j = 0; j < kLm4Boundaries; ++j) code += value > Lm4Boundary(j) ? 1 : 0;
    PutNibble(codes, d, code);
    levels[d] = kLm4Levels[code];
  }
  const CodeScale scale = Lm4Scale(squared_length, LaneDot(levels.data(), levels.data(), head_dim));
  for (int64_t d = 0; d < head_dim; ++d) y[d] = std::fma(-scale.value, levels[d], y[d]);
  return scale;
}

struct SfvBlock {
  uint32_t index;
  uint32_t signs;
};
// sfv2: index and signs share a byte. sfv3: the index is a byte, two blocks share one of signs.
void PutBlock(CodecId codec, int64_t at, const SfvBlock& block, const TokenBytes<std::byte>& to) {
  if (codec == CodecId::kSfv2) {
    to.codes[at] = static_cast<std::byte>(block.index << kSfvCoords | block.signs);
  } else {
    to.codes[at] = static_cast<std::byte>(block.index);
    to.signs[at / 2] |= static_cast<std::byte>(block.signs << at % 2 * kSfvCoords);
  }
}
SfvBlock BlockAt(CodecId codec, int64_t block, const TokenBytes<const std::byte>& from) {
  const uint32_t byte = static_cast<uint32_t>(from.codes[block]);
  if (codec == CodecId::kSfv2) return {byte >> kSfvCoords, byte & 15};
  return {byte, static_cast<uint32_t>(from.signs[block / 2]) >> block % 2 * kSfvCoords & 15};
}

float SfvLevel(const SfvVector& vector, uint32_t signs, int j) {
  return (signs >> j & 1) != 0 ? -vector.magnitude[j] : vector.magnitude[j];
}

// x becomes the levels; its index and signs come back.
SfvBlock NearestVector(std::span<const SfvVector> vectors, float (&x)[kSfvCoords]) {
  SfvBlock best = {0, 0};
  float least = SfvDistance(vectors[0], x);
  for (uint32_t n = 1; n < vectors.size(); ++n) {
    const float distance = SfvDistance(vectors[n], x);
    if (!(distance < least)) continue;
    least = distance;
    best.index = n;
  }
  for (int j = 0; j < kSfvCoords; ++j) best.signs |= x[j] < 0.0f ? 1u << j : 0u;
  for (int j = 0; j < kSfvCoords; ++j) x[j] = SfvLevel(vectors[best.index], best.signs, j);
  return best;
}

CodeScale CodeSfv(CodecId codec, float squared_length, std::span<float> y,
                  const TokenBytes<std::byte>& to) {
  const int64_t head_dim = std::ssize(y);
  const float normalizer = Lm4Normalizer(squared_length, head_dim);
  if (normalizer == 0.0f) return RoundScale(0.0f);
  std::vector<float> normalized(head_dim);
  std::vector<float> levels(head_dim);
  for (int64_t block = 0; block < head_dim / kSfvCoords; ++block) {
    const int64_t first = block * kSfvCoords;
    float x[kSfvCoords];
    for (int j = 0; j < kSfvCoords; ++j) {
      normalized[first + j] = x[j] = y[first + j] * normalizer;
    }
    const SfvBlock best = NearestVector(SfvVectors(codec), x);
    for (int j = 0; j < kSfvCoords; ++j) levels[first + j] = x[j];
    PutBlock(codec, block, best, to);
  }
  const CodeScale scale =
      codec == CodecId::kSfv2
          ? SfvUnbiasedScale(squared_length, head_dim,
                             LaneDot(levels.data(), normalized.data(), head_dim))
          : Lm4Scale(squared_length, LaneDot(levels.data(), levels.data(), head_dim));
  for (int64_t d = 0; d < head_dim; ++d) y[d] = std::fma(-scale.value, levels[d], y[d]);
  return scale;
}

struct Affine {
  float scale;
  float zero;
};
// y becomes what the code leaves over.
void CodeAffine(const Affine& affine, int64_t d, float& y, std::byte* codes) {
  const float code = AffineCode(y, affine.zero, InverseScale(affine.scale));
  PutNibble(codes, d, static_cast<uint32_t>(code));
  y -= AffineValue(code, affine.scale, affine.zero);
}

void CodeI4(std::span<float> y, const TokenBytes<std::byte>& to) {
  const int64_t head_dim = std::ssize(y);
  const int64_t size = I4tGroup(head_dim);
  for (int64_t group = 0; group < head_dim / size; ++group) {
    const std::span<float> part = y.subspan(group * size, size);
    const auto [lowest, highest] = std::minmax_element(part.begin(), part.end());
    const AffineScale affine = AffineScaleOf(*lowest, *highest);
    PutHalf(to.scales, group, affine.scale);
    PutHalf(to.zeros, group, affine.zero);
    for (int64_t i = 0; i < size; ++i) {
      CodeAffine({affine.scale.value, affine.zero.value}, group * size + i, part[i], to.codes);
    }
  }
}

}  // namespace

void ScaleChannels(std::span<const float> rows, int64_t head_dim, std::byte* scales,
                   std::byte* zeros) {
  for (int64_t d = 0; d < head_dim; ++d) {
    float lowest = rows[d], highest = rows[d];
    for (int64_t token = 1; token < kPackedBlockTokens; ++token) {
      lowest = std::min(lowest, rows[token * head_dim + d]);
      highest = std::max(highest, rows[token * head_dim + d]);
    }
    const AffineScale affine = AffineScaleOf(lowest, highest);
    PutHalf(scales, d, affine.scale);
    PutHalf(zeros, d, affine.zero);
  }
}

void CodeRow(CodecId codec, float squared_length, std::span<float> y,
             const TokenBytes<std::byte>& to) {
  switch (codec) {
    case CodecId::kRaw16:
      return;
    case CodecId::kI8t:
      return PutHalf(to.scales, 0, CodeI8(y, to.codes));
    case CodecId::kFp8t:
      return PutHalf(to.scales, 0, CodeFp8(y, to.codes));
    case CodecId::kKch4:
      for (int64_t d = 0; d < std::ssize(y); ++d) {
        CodeAffine({HalfAt(to.scales, d), HalfAt(to.zeros, d)}, d, y[d], to.codes);
      }
      return;
    case CodecId::kI4t:
      return CodeI4(y, to);
    case CodecId::kLm4:
      return PutHalf(to.scales, 0, CodeLm4(squared_length, y, to.codes));
    case CodecId::kSfv2:
    case CodecId::kSfv3:
      return PutHalf(to.scales, 0, CodeSfv(codec, squared_length, y, to));
  }
}

void RestoreRow(CodecId codec, const TokenBytes<const std::byte>& from, std::span<float> x) {
  const int64_t head_dim = std::ssize(x);
  const bool affine = IsAffine(codec);
  const int64_t group = codec == CodecId::kKch4  ? 1
                        : codec == CodecId::kI4t ? I4tGroup(head_dim)
                                                 : head_dim;
  for (int64_t d = 0; d < head_dim; ++d) {
    const float scale = HalfAt(from.scales, d / group);
    if (affine) {
      const float zero = HalfAt(from.zeros, d / group);
      x[d] = AffineValue(static_cast<float>(NibbleAt(from.codes, d)), scale, zero);
    } else if (codec == CodecId::kI8t) {
      x[d] = scale * static_cast<float>(static_cast<int8_t>(from.codes[d]));
    } else if (codec == CodecId::kFp8t) {
      x[d] = scale * FloatFromE4m3(static_cast<uint32_t>(from.codes[d]));
    } else if (codec == CodecId::kLm4) {
      x[d] = scale * kLm4Levels[NibbleAt(from.codes, d)];
    } else {
      const SfvBlock block = BlockAt(codec, d / kSfvCoords, from);
      const SfvVector& vector = SfvVectors(codec)[block.index];
      x[d] = scale * SfvLevel(vector, block.signs, d % kSfvCoords);
    }
  }
}

}  // namespace kvern::ref
