// A worker takes one row of the packed table; its 64 tokens share one set of row buffers.
#include "kernels/cpu/decode.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cpu/coding_order.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/decode.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target, the baseline last
// After the list of targets.
#include "hwy/highway.h"
#include "kernels/base/coding.h"
#include "kernels/cpu/affine-inl.h"
#include "kernels/cpu/fp8-inl.h"
#include "kernels/cpu/hadamard-inl.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/lm4-inl.h"
#include "kernels/cpu/register_decode-inl.h"
#include "kernels/cpu/rotation-inl.h"
#include "kernels/cpu/sfv-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Buffers of one row, [PaddedDim(head_dim)] each.
struct Buffers {
  float* x;
  float* mean;     // un-rotated
  float* rotated;  // the mean at a token's angles; affine scales before
  float* spare;
};

class RowDecoder {
 public:
  RowDecoder(const DecodeArgs& args, const PackedRow& row, const Buffers& buffers)
      : args_(args),
        row_(row),
        out_(args.rows[row.layer]),
        padded_(PaddedDim(out_.head_dim)),
        buffers_(buffers) {
    for (int64_t d = out_.head_dim; d < padded_; ++d) buffers.x[d] = 0.0f;
    if (!UsesRopeMean(row)) return;
    for (int64_t d = 0; d < padded_; ++d) {
      buffers.mean[d] =
          d < out_.head_dim ? FiniteMean(args.mean_key(row.layer, row.kv_head, d)) : 0.0f;
    }
  }

  void Decode() {
    const PackedPlanes planes = PlanesOf(row_, out_);
    KVERN_CHECK(SlotsEndBy(row_, out_.tokens));
    if (static_cast<CodecId>(row_.codec) == CodecId::kKch4) {  // once for all tokens
      SpreadScales(BytesOf(planes, args_.packed.data(), 0), out_.head_dim, /*size=*/1,
                   {buffers_.rotated, buffers_.spare});
    }
    for (int64_t token = 0; token < row_.tokens; ++token) {
      const TokenBytes<const std::byte> from = BytesOf(planes, args_.packed.data(), token);
      if (static_cast<CodecId>(row_.codec) == CodecId::kRaw16) {
        CopyRaw(from.codes, row_.first_slot + token);
        continue;
      }
      RestoreRow(from);
      Write(row_.first_slot + token);
    }
  }

 private:
  void CopyRaw(const std::byte* codes, int64_t slot) const {
    const int64_t size = SizeOf(out_.dtype);
    CopyRowBytes({const_cast<std::byte*>(codes), size},
                 {out_.Address(row_.kv_head, slot), out_.strides.dim}, out_.head_dim, size);
  }

  // x = codes * scale (+ zero), in the space that was coded.
  void RestoreRow(const TokenBytes<const std::byte>& from) {
    const CodecId codec = static_cast<CodecId>(row_.codec);
    const int64_t head_dim = out_.head_dim;
    if (codec == CodecId::kSfv2 || codec == CodecId::kSfv3) {
      RestoreSfv(codec, head_dim, from, buffers_.x);
      return;
    }
    if (IsAffine(codec)) {
      const AffineRow affine = {buffers_.rotated, buffers_.spare};
      if (codec == CodecId::kI4t) SpreadScales(from, head_dim, I4tGroup(head_dim), affine);
      RestoreAffine(affine, head_dim, from.codes, buffers_.x);
      return;
    }
    Float16 stored;
    std::memcpy(&stored, from.scales, sizeof(stored));
    const float scale = ToFloat(stored);
    if (codec == CodecId::kI8t) {
      RestoreI8(reinterpret_cast<const int8_t*>(from.codes), scale);
    } else if (codec == CodecId::kFp8t) {
      RestoreFp8(scale, head_dim, from.codes, buffers_.x);
    } else {
      RestoreLm4(from.codes, scale);
    }
  }
  void RestoreI8(const int8_t* codes, float scale) {
    const TailTag d;
    const hn::Rebind<int8_t, TailTag> narrow;
    const hn::Rebind<int32_t, TailTag> wide;
    for (int64_t i = 0; i < out_.head_dim; i += hn::Lanes(d)) {
      const auto code = hn::ConvertTo(d, hn::PromoteTo(wide, hn::LoadU(narrow, codes + i)));
      hn::Store(hn::Mul(hn::Set(d, scale), code), d, buffers_.x + i);
    }
  }

  void RestoreLm4(const std::byte* codes, float scale) {
    const TailTag d;
    const hn::Rebind<uint32_t, TailTag> words;
    const hn::Rebind<int32_t, TailTag> indices;
    for (int64_t group = 0; group < out_.head_dim; group += 8) {
      uint32_t word;
      std::memcpy(&word, codes + group / 2, sizeof(word));
      for (int64_t i = 0; i < 8; i += hn::Lanes(d)) {
        const auto shifts = hn::LoadU(words, reinterpret_cast<const uint32_t*>(kLm4Shifts) + i);
        const auto code = hn::And(hn::Shr(hn::Set(words, word), shifts), hn::Set(words, 15u));
        const auto level = Lm4LevelOf(d, hn::BitCast(indices, code));
        hn::Store(hn::Mul(hn::Set(d, scale), level), d, buffers_.x + group + i);
      }
    }
  }

  void AddMean(int64_t slot) {
    const RowTag d;
    float* rotated = buffers_.rotated;
    for (int64_t i = 0; i < padded_; i += hn::Lanes(d)) {
      hn::Store(hn::Load(d, buffers_.mean + i), d, rotated + i);
    }
    const int64_t angle = args_.rotation->Row(row_.layer, row_.kv_head, slot);
    TurnRow<Turn::kRotate>(RowOf(*args_.rotation, angle), rotated);
    for (int64_t i = 0; i < padded_; i += hn::Lanes(d)) {
      const auto sum = hn::Add(hn::Load(d, buffers_.x + i), hn::Load(d, rotated + i));
      hn::Store(sum, d, buffers_.x + i);
    }
  }

  // Keeps NaN: neither comparison holds for it.
  void ClampToF16() {
    const RowTag d;
    const auto limit = hn::Set(d, kLargestCoded);
    for (int64_t i = 0; i < padded_; i += hn::Lanes(d)) {
      const auto value = hn::Load(d, buffers_.x + i);
      const auto large = hn::Gt(hn::Abs(value), limit);
      hn::Store(hn::IfThenElse(large, hn::CopySign(limit, value), value), d, buffers_.x + i);
    }
  }

  void Write(int64_t slot) {
    if (UsesHadamard(row_)) InverseHadamardRow(HadamardOf(out_.head_dim), buffers_.x);
    if (UsesRopeMean(row_)) AddMean(slot);
    if (out_.dtype == DType::kF16) ClampToF16();
    StoreRow(out_, buffers_.x, out_.Address(row_.kv_head, slot));
  }

  const DecodeArgs& args_;
  const PackedRow& row_;
  const KvRef& out_;
  const int64_t padded_;
  const Buffers buffers_;
};

absl::Status DecodeRow(const DecodeArgs& args, const CodingItem& item, Scratch& scratch) {
  const PackedRow& row = item.row;
  KVERN_CHECK(IsSound(row, args.rows, std::ssize(args.packed)));
  const KvRef& out = args.rows[row.layer];
  scratch.Reset();
  if (FitsRegisters(out, row) && HasFiniteScales(args.packed, row, PlanesOf(row, out))) {
    KVERN_CHECK(SlotsEndBy(row, out.tokens));
    auto* rows = scratch.Take<DecodeRows>(1);
    KVERN_RETURN_IF_ERROR(scratch.Taken());
    VisitDType(out.dtype, [&](auto tag) HWY_ATTR {
      RegisterDecoder<typename decltype(tag)::type>(args, item, *rows).Decode();
    });
    return absl::OkStatus();
  }
  const int64_t padded = PaddedDim(out.head_dim);
  const Buffers buffers = {scratch.Take<float>(padded), scratch.Take<float>(padded),
                           scratch.Take<float>(padded), scratch.Take<float>(padded)};
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  RowDecoder(args, row, buffers).Decode();
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace kvern::cpu {
namespace {
HWY_EXPORT(DecodeRow);
}  // namespace

absl::Status Decode(Runner& runner, const DecodeArgs& args) {
  const std::vector<int32_t> order = CodingOrder(args.table);
  return runner.ForEach(std::ssize(order), [&](int64_t item, int worker) {
    KVERN_RETURN_IF_ERROR(runner.Check());
    const CodingItem rows = ItemOf(args.table, order, item, runner.Threads());
    return HWY_DYNAMIC_DISPATCH(DecodeRow)(args, rows, runner.ScratchOf(worker));
  });
}

}  // namespace kvern::cpu

#endif  // HWY_ONCE
