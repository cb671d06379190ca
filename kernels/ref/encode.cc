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
#include "kernels/base/status_macros.h"
#include "kernels/ref/row_codes.h"

namespace kvern::ref {
namespace {

// NaN becomes 0, what is too large is clamped; the count of both.
int64_t Sanitise(std::span<float> x) {
  int64_t count = 0;
  for (float& value : x) {
    if (std::fabs(value) <= kLargestCoded) continue;
    ++count;
    value = value != value ? 0.0f : std::copysign(kLargestCoded, value);
  }
  return count;
}

float SquaredSum(std::span<const float> x) {
  return LaneDot(x.data(), x.data(), static_cast<int64_t>(x.size()));
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
    if (NeedsFullBlock(Codec())) return EncodeChannels(source, planes);
    EncodeCounts counts;
    for (int64_t token = 0; token < row_.tokens; ++token) {
      const TokenBytes<std::byte> to = BytesOf(planes, args_.packed.data(), token);
      if (Codec() == CodecId::kRaw16) {
        CopyRaw(source[token], to.codes);
      } else {
        CodeToken(source[token], to, &counts);
      }
    }
    return counts;
  }

 private:
  CodecId Codec() const { return static_cast<CodecId>(row_.codec); }

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

  void Load(int64_t source, std::span<float> x, EncodeCounts* counts) const {
    LoadKvRow(keys_, keys_.Address(row_.kv_head, source), x.data());
    counts->nonfinite += Sanitise(x);
    counts->squared_norm += SquaredSum(x);
  }

  void CodeToken(int64_t source, const TokenBytes<std::byte>& to, EncodeCounts* counts) {
    Load(source, x_, counts);
    if (!mean_.empty()) SubtractMean(source);
    const float squared_length = SquaredSum(x_);
    if (UsesHadamard(row_)) RotateByHadamard(HadamardOf(keys_.head_dim), x_.data());
    CodeRow(Codec(), squared_length, x_, to);
    counts->squared_error += SquaredSum(x_);  // a rotation changes no length
  }

  // kch4: what a channel's scale is, all tokens of the block say.
  EncodeCounts EncodeChannels(const int32_t* source, const PackedPlanes& planes) const {
    const int64_t head_dim = keys_.head_dim;
    EncodeCounts counts;
    std::vector<float> rows(row_.tokens * head_dim);
    const auto row_of = [&](int64_t token) {
      return std::span(rows).subspan(token * head_dim, head_dim);
    };
    for (int64_t token = 0; token < row_.tokens; ++token) {
      Load(source[token], row_of(token), &counts);
    }
    const TokenBytes<std::byte> block = BytesOf(planes, args_.packed.data(), 0);
    ScaleChannels(rows, head_dim, block.scales, block.zeros);
    for (int64_t token = 0; token < row_.tokens; ++token) {
      CodeRow(Codec(), /*squared_length=*/0.0f, row_of(token),
              BytesOf(planes, args_.packed.data(), token));
      counts.squared_error += SquaredSum(row_of(token));
    }
    return counts;
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
