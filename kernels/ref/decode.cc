// Codes times scale, rotated back, plus the mean that was taken away; rounded once.
#include "kernels/ref/decode.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/base/band_rotation.h"
#include "kernels/base/coding.h"
#include "kernels/base/hadamard.h"
#include "kernels/base/kv_row.h"
#include "kernels/base/status_macros.h"
#include "kernels/ref/row_codes.h"

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
      const TokenBytes<const std::byte> from = BytesOf(planes, args_.packed.data(), token);
      if (static_cast<CodecId>(row_.codec) == CodecId::kRaw16) {
        CopyRaw(from.codes, row_.first_slot + token);
        continue;
      }
      RestoreRow(static_cast<CodecId>(row_.codec), from, x_);
      Write(row_.first_slot + token);
    }
  }

 private:
  void CopyRaw(const std::byte* codes, int64_t slot) const {
    const int64_t size = SizeOf(out_.dtype);
    CopyRowBytes({const_cast<std::byte*>(codes), size},
                 {out_.Address(row_.kv_head, slot), out_.strides.dim}, out_.head_dim, size);
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
