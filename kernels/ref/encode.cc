// A row goes to f32, loses its mean, is rotated, and becomes codes and one scale.
#include "kernels/ref/encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/base/band_rotation.h"
#include "kernels/base/coding.h"
#include "kernels/base/hadamard.h"
#include "kernels/base/kv_row.h"
#include "kernels/base/lanes.h"
#include "kernels/base/lm4_table.h"
#include "kernels/base/status_macros.h"

namespace kvern::ref {
namespace {

// NaN becomes 0, what is too large is clamped; the count of both.
int64_t Sanitise(std::vector<float>& x) {
  int64_t count = 0;
  for (float& value : x) {
    if (std::fabs(value) <= kLargestCoded) continue;
    ++count;
    value = value != value ? 0.0f : std::copysign(kLargestCoded, value);
  }
  return count;
}

float SquaredSum(const std::vector<float>& x) {
  return LaneDot(x.data(), x.data(), static_cast<int64_t>(x.size()));
}

// Codes y; y becomes what the codes leave over.
CodeScale CodeI8(std::vector<float>& y, int8_t* codes) {
  float largest = 0.0f;
  for (const float value : y) largest = std::max(largest, std::fabs(value));
  const CodeScale scale = I8Scale(largest);
  const float inverse = InverseScale(scale.value);
  for (size_t i = 0; i < y.size(); ++i) {
    const float code = std::clamp(std::nearbyint(y[i] * inverse), -kI8Levels, kI8Levels);
    codes[i] = static_cast<int8_t>(code);
    y[i] = std::fma(-scale.value, code, y[i]);
  }
  return scale;
}

// As CodeI8; `squared_length` is that of the row before its rotation.
CodeScale CodeLm4(std::vector<float>& y, float squared_length, std::byte* codes) {
  const int64_t head_dim = static_cast<int64_t>(y.size());
  const float normalizer = Lm4Normalizer(squared_length, head_dim);
  if (normalizer == 0.0f) return RoundScale(0.0f);  // codes arrive zeroed
  std::vector<float> levels(head_dim);
  for (int64_t group = 0; group < head_dim; group += 8) {
    uint32_t word = 0;
    for (int64_t i = 0; i < 8; ++i) {
      const float value = y[group + i] * normalizer;
      uint32_t code = 0;
      for (int j = 0; j < kLm4Boundaries; ++j) code += value > Lm4Boundary(j) ? 1 : 0;
      word |= code << kLm4Shifts[i];
      levels[group + i] = kLm4Levels[code];
    }
    std::memcpy(codes + group / 2, &word, sizeof(word));
  }
  const CodeScale scale = Lm4Scale(squared_length, LaneDot(levels.data(), levels.data(), head_dim));
  for (int64_t i = 0; i < head_dim; ++i) y[i] = std::fma(-scale.value, levels[i], y[i]);
  return scale;
}

class RowEncoder {
 public:
  RowEncoder(const EncodeArgs& args, const PackedRow& row)
      : args_(args), row_(row), keys_(args.rows[row.layer]), x_(keys_.head_dim) {
    if (!UsesRopeMean(row)) return;
    for (int32_t d = 0; d < keys_.head_dim; ++d) {
      mean_.push_back(FiniteMean(args.mean_key(row.layer, row.kv_head, d)));
    }
  }

  EncodeCounts Encode() {
    const PackedPlanes planes = PlanesOf(row_, keys_);
    KVERN_CHECK(SlotsEndBy(row_, args_.keep->Count(row_.layer, row_.kv_head)));
    const int32_t* source = args_.keep->Row(row_.layer, row_.kv_head) + row_.first_slot;
    EncodeCounts counts;
    for (int64_t token = 0; token < row_.tokens; ++token) {
      std::byte* codes = args_.packed.data() + planes.codes + token * planes.code_row_bytes;
      std::byte* scale = args_.packed.data() + planes.scales + token * sizeof(Float16);
      if (static_cast<CodecId>(row_.codec) == CodecId::kRaw16) {
        CopyRaw(source[token], codes);
      } else {
        CodeToken(source[token], {codes, scale}, &counts);
      }
    }
    return counts;
  }

 private:
  struct Target {
    std::byte* codes;
    std::byte* scale;
  };

  void CopyRaw(int64_t source, std::byte* codes) const {
    const int64_t size = SizeOf(keys_.dtype);
    CopyRowBytes({keys_.Address(row_.kv_head, source), keys_.strides.dim}, {codes, size},
                 keys_.head_dim, size);
  }

  void SubtractMean(int64_t source) {
    std::vector<float> mean = mean_;
    const int64_t angle = args_.rotation->Row(row_.layer, row_.kv_head, source);
    RotateRow(RowOf(*args_.rotation, angle), mean.data());
    for (size_t d = 0; d < x_.size(); ++d) x_[d] -= mean[d];
  }

  void CodeToken(int64_t source, Target target, EncodeCounts* counts) {
    LoadKvRow(keys_, keys_.Address(row_.kv_head, source), x_.data());
    counts->nonfinite += Sanitise(x_);
    counts->squared_norm += SquaredSum(x_);
    if (!mean_.empty()) SubtractMean(source);
    const float squared_length = SquaredSum(x_);
    if (UsesHadamard(row_)) RotateByHadamard(HadamardOf(keys_.head_dim), x_.data());
    const CodeScale scale = static_cast<CodecId>(row_.codec) == CodecId::kI8t
                                ? CodeI8(x_, reinterpret_cast<int8_t*>(target.codes))
                                : CodeLm4(x_, squared_length, target.codes);
    std::memcpy(target.scale, &scale.stored, sizeof(scale.stored));
    counts->squared_error += SquaredSum(x_);  // a rotation changes no length
  }

  const EncodeArgs& args_;
  const PackedRow& row_;
  const KvRef& keys_;
  std::vector<float> x_;
  std::vector<float> mean_;  // un-rotated; empty without rm
};

}  // namespace

absl::Status Encode(const StopCheck* stop, const EncodeArgs& args, EncodeCounts* counts) {
  *counts = {};
  for (const PackedRow& row : args.table) {
    if (stop != nullptr) KVERN_RETURN_IF_ERROR(stop->Check());
    KVERN_CHECK(IsSound(row, args.rows, std::ssize(args.packed)));
    const EncodeCounts coded = RowEncoder(args, row).Encode();
    counts->nonfinite += coded.nonfinite;
    counts->squared_error += coded.squared_error;
    counts->squared_norm += coded.squared_norm;
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
