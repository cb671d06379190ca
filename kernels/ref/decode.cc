// Codes times scale, rotated back, plus the mean that was taken away; rounded once.
#include "kernels/ref/decode.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/base/band_rotation.h"
#include "kernels/base/coding.h"
#include "kernels/base/hadamard.h"
#include "kernels/base/kv_row.h"
#include "kernels/base/lm4_table.h"
#include "kernels/base/status_macros.h"

namespace kvern::ref {
namespace {

class RowDecoder {
 public:
  RowDecoder(const DecodeArgs& args, const PackedRow& row)
      : args_(args), row_(row), out_(args.rows[row.layer]), x_(out_.head_dim) {
    if (!UsesRopeMean(row)) return;
    for (int32_t d = 0; d < out_.head_dim; ++d) {
      mean_.push_back(FiniteMean(args.mean_key(row.layer, row.kv_head, d)));
    }
  }

  void Decode() {
    const PackedPlanes planes = PlanesOf(row_, out_);
    KVERN_CHECK(SlotsEndBy(row_, out_.tokens));
    for (int64_t token = 0; token < row_.tokens; ++token) {
      const std::byte* codes = args_.packed.data() + planes.codes + token * planes.code_row_bytes;
      if (static_cast<CodecId>(row_.codec) == CodecId::kRaw16) {
        CopyRaw(codes, row_.first_slot + token);
        continue;
      }
      Float16 scale;
      std::memcpy(&scale, args_.packed.data() + planes.scales + token * sizeof(scale),
                  sizeof(scale));
      Restore(codes, ToFloat(scale));
      Write(row_.first_slot + token);
    }
  }

 private:
  void CopyRaw(const std::byte* codes, int64_t slot) const {
    const int64_t size = SizeOf(out_.dtype);
    CopyRowBytes({const_cast<std::byte*>(codes), size},
                 {out_.Address(row_.kv_head, slot), out_.strides.dim}, out_.head_dim, size);
  }

  // x = codes * scale, in the space that was coded.
  void Restore(const std::byte* codes, float scale) {
    if (static_cast<CodecId>(row_.codec) == CodecId::kI8t) {
      const auto* code = reinterpret_cast<const int8_t*>(codes);
      for (size_t d = 0; d < x_.size(); ++d) x_[d] = scale * static_cast<float>(code[d]);
      return;
    }
    for (size_t group = 0; group < x_.size(); group += 8) {
      uint32_t word;
      std::memcpy(&word, codes + group / 2, sizeof(word));
      for (int i = 0; i < 8; ++i) {
        x_[group + i] = scale * kLm4Levels[(word >> kLm4Shifts[i]) & 15];
      }
    }
  }

  void Write(int64_t slot) {
    if (UsesHadamard(row_)) UnrotateByHadamard(HadamardOf(out_.head_dim), x_.data());
    if (!mean_.empty()) {
      std::vector<float> mean = mean_;
      const int64_t angle = args_.rotation->Row(row_.layer, row_.kv_head, slot);
      RotateRow(RowOf(*args_.rotation, angle), mean.data());
      for (size_t d = 0; d < x_.size(); ++d) x_[d] += mean[d];
    }
    if (out_.dtype == DType::kF16) {
      for (float& value : x_) value = std::clamp(value, -kLargestCoded, kLargestCoded);
    }
    StoreKvRow(out_, x_.data(), out_.Address(row_.kv_head, slot));
  }

  const DecodeArgs& args_;
  const PackedRow& row_;
  const KvRef& out_;
  std::vector<float> x_;
  std::vector<float> mean_;  // un-rotated; empty without rm
};

}  // namespace

absl::Status Decode(const StopCheck* stop, const DecodeArgs& args) {
  for (const PackedRow& row : args.table) {
    if (stop != nullptr) KVERN_RETURN_IF_ERROR(stop->Check());
    KVERN_CHECK(IsSound(row, args.rows, std::ssize(args.packed)));
    RowDecoder(args, row).Decode();
  }
  return absl::OkStatus();
}

}  // namespace kvern::ref
