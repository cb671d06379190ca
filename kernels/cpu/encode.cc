// A worker takes one row of the packed table; its 64 tokens share one set of row buffers.
#include "kernels/cpu/encode.h"

#include <vector>

#include "kernels/base/status_macros.h"
#include "kernels/cpu/coding_order.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/encode.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target, the baseline last
// After the list of targets.
#include "hwy/highway.h"
#include "kernels/base/coding.h"
#include "kernels/cpu/affine-inl.h"
#include "kernels/cpu/dots-inl.h"
#include "kernels/cpu/fp8-inl.h"
#include "kernels/cpu/hadamard-inl.h"
#include "kernels/cpu/kv_row-inl.h"
#include "kernels/cpu/lm4-inl.h"
#include "kernels/cpu/register_encode-inl.h"
#include "kernels/cpu/rotation-inl.h"
#include "kernels/cpu/sanitise-inl.h"
#include "kernels/cpu/sfv-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvern::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

float LargestMagnitude(const float* HWY_RESTRICT y, int64_t n) {
  const RowTag d;
  auto largest = hn::Zero(d);
  for (int64_t i = 0; i < n; i += hn::Lanes(d)) {
    largest = hn::Max(largest, hn::Abs(hn::Load(d, y + i)));
  }
  return hn::GetLane(hn::MaxOfLanes(d, largest));
}

// Buffers of one row, [PaddedDim(head_dim)] each.
struct Buffers {
  float* x;
  float* mean;     // un-rotated
  float* rotated;  // the mean at a token's angles; the levels of lm4, affine scales later
  float* spare;
};

class RowEncoder {
 public:
  RowEncoder(const EncodeArgs& args, const PackedRow& row, const Buffers& buffers)
      : args_(args),
        row_(row),
        keys_(args.rows[row.layer]),
        padded_(PaddedDim(keys_.head_dim)),
        buffers_(buffers) {
    if (!UsesRopeMean(row)) return;
    for (int64_t d = 0; d < padded_; ++d) {
      buffers.mean[d] =
          d < keys_.head_dim ? FiniteMean(args.mean_key(row.layer, row.kv_head, d)) : 0.0f;
    }
  }

  EncodeCounts Encode() {
    const PackedPlanes planes = PlanesOf(row_, keys_);
    KVERN_CHECK(SlotsEndBy(row_, args_.keep->Count(row_.layer, row_.kv_head)));
    const int32_t* source = args_.keep->Row(row_.layer, row_.kv_head) + row_.first_slot;
    if (NeedsFullBlock(static_cast<CodecId>(row_.codec))) return EncodeChannels(source, planes);
    EncodeCounts counts;
    for (int64_t token = 0; token < row_.tokens; ++token) {
      if (token + kRowsAhead < row_.tokens) {
        PrefetchRow(keys_, keys_.Address(row_.kv_head, source[token + kRowsAhead]));
      }
      const TokenBytes<std::byte> to = BytesOf(planes, args_.packed.data(), token);
      if (static_cast<CodecId>(row_.codec) == CodecId::kRaw16) {
        CopyRaw(source[token], to.codes);
      } else {
        CodeToken(source[token], to, &counts);
      }
    }
    return counts;
  }

 private:
  void CopyRaw(int64_t source, std::byte* codes) const {
    const int64_t size = SizeOf(keys_.dtype);
    CopyRowBytes({keys_.Address(row_.kv_head, source), keys_.strides.dim}, {codes, size},
                 keys_.head_dim, size);
  }

  void SubtractMean(int64_t source) {
    const RowTag d;
    float* x = buffers_.x;
    float* rotated = buffers_.rotated;
    for (int64_t i = 0; i < padded_; i += hn::Lanes(d)) {
      hn::Store(hn::Load(d, buffers_.mean + i), d, rotated + i);
    }
    const int64_t angle = args_.rotation->Row(row_.layer, row_.kv_head, source);
    TurnRow<Turn::kRotate>(RowOf(*args_.rotation, angle), rotated);
    for (int64_t i = 0; i < padded_; i += hn::Lanes(d)) {
      hn::Store(hn::Sub(hn::Load(d, x + i), hn::Load(d, rotated + i)), d, x + i);
    }
  }

  // x = the row, sanitised; the count of what was not fine.
  int64_t Load(int64_t source) {
    LoadRow(keys_, keys_.Address(row_.kv_head, source), buffers_.x);
    return Sanitise(buffers_.x, padded_);
  }

  void CodeToken(int64_t source, const TokenBytes<std::byte>& to, EncodeCounts* counts) {
    float* x = buffers_.x;
    counts->nonfinite += Load(source);
    counts->squared_norm += OneLaneDot(x, x, padded_);
    if (UsesRopeMean(row_)) SubtractMean(source);
    const float squared_length = OneLaneDot(x, x, padded_);
    if (UsesHadamard(row_)) HadamardRow(HadamardOf(keys_.head_dim), x);
    CodeRow(squared_length, to);
    counts->squared_error += OneLaneDot(x, x, padded_);  // a rotation changes no length
  }

  void CodeRow(float squared_length, const TokenBytes<std::byte>& to) {
    const CodecId codec = static_cast<CodecId>(row_.codec);
    const int64_t head_dim = keys_.head_dim;
    float* x = buffers_.x;
    if (codec == CodecId::kSfv2 || codec == CodecId::kSfv3) {
      CodeSfv({codec, head_dim, to}, squared_length, x);
      return;
    }
    if (codec == CodecId::kI4t) {
      const AffineRow affine = {buffers_.rotated, buffers_.spare};
      ScaleGroups(x, head_dim, affine, to);
      CodeAffine(affine, head_dim, x, to.codes);
      return;
    }
    const CodeScale scale = codec == CodecId::kI8t ? CodeI8(reinterpret_cast<int8_t*>(to.codes))
                            : codec == CodecId::kFp8t
                                ? CodeFp8(LargestMagnitude(x, padded_), head_dim, x, to.codes)
                                : CodeLm4(squared_length, to.codes);
    std::memcpy(to.scales, &scale.stored, sizeof(scale.stored));
  }

  // kch4: what a channel's scale is, all tokens of the block say; their rows are read twice.
  EncodeCounts EncodeChannels(const int32_t* source, const PackedPlanes& planes) {
    const RowTag d;
    float* x = buffers_.x;
    float* lowest = buffers_.rotated;
    float* highest = buffers_.spare;
    EncodeCounts counts;
    for (int64_t token = 0; token < row_.tokens; ++token) {
      counts.nonfinite += Load(source[token]);
      counts.squared_norm += OneLaneDot(x, x, padded_);
      for (int64_t i = 0; i < padded_; i += hn::Lanes(d)) {
        const auto value = hn::Load(d, x + i);
        const auto low = token == 0 ? value : hn::Min(value, hn::Load(d, lowest + i));
        const auto high = token == 0 ? value : hn::Max(value, hn::Load(d, highest + i));
        hn::Store(low, d, lowest + i);
        hn::Store(high, d, highest + i);
      }
    }
    ScaleChannels(keys_.head_dim, lowest, highest, BytesOf(planes, args_.packed.data(), 0));
    for (int64_t token = 0; token < row_.tokens; ++token) {
      Load(source[token]);
      CodeAffine({.scales = highest, .zeros = lowest}, keys_.head_dim, x,
                 BytesOf(planes, args_.packed.data(), token).codes);
      counts.squared_error += OneLaneDot(x, x, padded_);
    }
    return counts;
  }

  // Codes x; x becomes what the codes leave over.
  CodeScale CodeI8(int8_t* codes) {
    const TailTag d;
    const hn::Rebind<int32_t, TailTag> wide;
    const hn::Rebind<int8_t, TailTag> narrow;
    float* x = buffers_.x;
    const CodeScale scale = I8Scale(LargestMagnitude(x, padded_));
    const auto inverse = hn::Set(d, InverseScale(scale.value));
    const auto step = hn::Set(d, scale.value);
    for (int64_t i = 0; i < keys_.head_dim; i += hn::Lanes(d)) {
      const auto value = hn::Load(d, x + i);
      const auto rounded = hn::Round(hn::Mul(value, inverse));
      const auto code = hn::Clamp(rounded, hn::Set(d, -kI8Levels), hn::Set(d, kI8Levels));
      hn::StoreU(hn::DemoteTo(narrow, hn::ConvertTo(wide, code)), narrow, codes + i);
      hn::Store(hn::NegMulAdd(step, code, value), d, x + i);
    }
    return scale;
  }

  // As CodeI8; `squared_length` is that of the row before its rotation.
  CodeScale CodeLm4(float squared_length, std::byte* codes) {
    const float normalizer = Lm4Normalizer(squared_length, keys_.head_dim);
    if (normalizer == 0.0f) return RoundScale(0.0f);  // codes arrive zeroed
    float* levels = buffers_.rotated;
    QuantizeLm4(normalizer, codes, levels);
    for (int64_t i = keys_.head_dim; i < padded_; ++i) levels[i] = 0.0f;
    const CodeScale scale = Lm4Scale(squared_length, OneLaneDot(levels, levels, padded_));
    const RowTag d;
    const auto step = hn::Set(d, scale.value);
    float* x = buffers_.x;
    for (int64_t i = 0; i < padded_; i += hn::Lanes(d)) {
      hn::Store(hn::NegMulAdd(step, hn::Load(d, levels + i), hn::Load(d, x + i)), d, x + i);
    }
    return scale;
  }

  // levels [padded_]: those beyond head_dim are arbitrary.
  void QuantizeLm4(float normalizer, std::byte* codes, float* HWY_RESTRICT levels) const {
    const RowTag d;
    const hn::RebindToSigned<RowTag> integers;
    HWY_ALIGN int32_t shifts[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) shifts[i] = kLm4Shifts[i % 8];
    for (int64_t first = 0; first < padded_; first += kLanes) {
      HWY_ALIGN int32_t joined[kLanes];
      for (int64_t i = 0; i < kLanes; i += static_cast<int64_t>(hn::MaxLanes(d))) {
        const auto value = hn::Mul(hn::Load(d, buffers_.x + first + i), hn::Set(d, normalizer));
        const auto code = Lm4CodeOf(d, value);
        hn::Store(Lm4LevelOf(d, code), d, levels + first + i);
        // Of the four lanes of a block, no two share a bit; each ends with all of them.
        auto bits = hn::Shl(code, hn::Load(integers, shifts + i));
        bits = hn::Or(bits, hn::Shuffle2301(bits));
        bits = hn::Or(bits, hn::Shuffle1032(bits));
        hn::Store(bits, integers, joined + i);
      }
      for (int64_t group = 0; group < kLanes && first + group < keys_.head_dim; group += 8) {
        const int32_t word = joined[group] | joined[group + 4];
        std::memcpy(codes + (first + group) / 2, &word, sizeof(word));
      }
    }
  }

  const EncodeArgs& args_;
  const PackedRow& row_;
  const KvRef& keys_;
  const int64_t padded_;
  const Buffers buffers_;
};

absl::Status EncodeRow(const EncodeArgs& args, const CodingItem& item, Scratch& scratch,
                       EncodeCounts* counts) {
  const PackedRow& row = item.row;
  KVERN_CHECK(IsSound(row, args.rows, std::ssize(args.packed)));
  const KvRef& keys = args.rows[row.layer];
  scratch.Reset();
  if (FitsRegisters(keys, row)) {
    KVERN_CHECK(SlotsEndBy(row, args.keep->Count(row.layer, row.kv_head)));
    auto* batch = scratch.Take<EncodeBatch>(1);
    KVERN_RETURN_IF_ERROR(scratch.Taken());
    VisitDType(keys.dtype, [&](auto tag) HWY_ATTR {
      *counts = RegisterEncoder<typename decltype(tag)::type>(args, item, *batch).Encode();
    });
    return absl::OkStatus();
  }
  const int64_t padded = PaddedDim(keys.head_dim);
  const Buffers buffers = {scratch.Take<float>(padded), scratch.Take<float>(padded),
                           scratch.Take<float>(padded), scratch.Take<float>(padded)};
  KVERN_RETURN_IF_ERROR(scratch.Taken());
  *counts = RowEncoder(args, row, buffers).Encode();
  return absl::OkStatus();
}

}  // namespace
}  // namespace kvern::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace kvern::cpu {
namespace {
HWY_EXPORT(EncodeRow);
}  // namespace

absl::Status Encode(Runner& runner, const EncodeArgs& args, EncodeCounts* counts) {
  std::vector<EncodeCounts> coded(args.table.size());
  const std::vector<int32_t> order = CodingOrder(args.table);
  KVERN_RETURN_IF_ERROR(runner.ForEach(std::ssize(order), [&](int64_t item, int worker) {
    KVERN_RETURN_IF_ERROR(runner.Check());
    const CodingItem rows = ItemOf(args.table, order, item, runner.Threads());
    return HWY_DYNAMIC_DISPATCH(EncodeRow)(args, rows, runner.ScratchOf(worker),
                                           &coded[order[item]]);
  }));
  // In table order, whoever coded what.
  *counts = {};
  for (const EncodeCounts& row : coded) {
    counts->nonfinite += row.nonfinite;
    counts->squared_error += row.squared_error;
    counts->squared_norm += row.squared_norm;
  }
  return absl::OkStatus();
}

}  // namespace kvern::cpu

#endif  // HWY_ONCE
