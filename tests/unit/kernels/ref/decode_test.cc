// Reads the documented bits, adds the mean at the slot's angle, and rounds once.
#include "kernels/ref/decode.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/band_rotation.h"
#include "kernels/base/hadamard.h"
#include "kernels/base/lm4_table.h"
#include "kernels/ref/encode.h"
#include "tests/support/host_kv.h"
#include "tests/support/packed_case.h"

namespace kvern {
namespace {

using support::HostKv;
using support::HostKvSpec;

PackedRow OneToken(CodecId codec, uint8_t flags) {
  PackedRow row = {};
  row.codec = static_cast<int64_t>(codec);
  row.flags = flags;
  row.tokens = 1;
  return row;
}

HostKv DecodeOne(const PackedRow& row, const std::vector<std::byte>& packed, DType dtype,
                 int64_t head_dim) {
  HostKv out({.dtype = dtype, .tokens = 1, .head_dim = head_dim});
  DecodeArgs args;
  args.packed = packed;
  args.table = {&row, 1};
  args.rows = out.refs();
  EXPECT_TRUE(ref::Decode(/*stop=*/nullptr, args).ok());
  return out;
}

void PutScale(std::vector<std::byte>& packed, int64_t offset, Float16 scale) {
  std::memcpy(packed.data() + offset, &scale, sizeof(scale));
}

TEST(Decode, ReadsEveryByteOfI8t) {
  std::vector<std::byte> packed(BlockBytes(CodecId::kI8t, DType::kF32, 1, 256));
  for (int i = 0; i < 256; ++i) packed[i] = static_cast<std::byte>(i);
  PutScale(packed, 256, FromFloat<Float16>(0.5f));
  const HostKv out = DecodeOne(OneToken(CodecId::kI8t, 0), packed, DType::kF32, 256);
  for (int i = 0; i < 256; ++i) {
    EXPECT_EQ(out.Get(0, 0, 0, i), 0.5f * static_cast<int8_t>(i)) << i;
  }
}

TEST(Decode, ReadsNibblesInTheDocumentedOrder) {
  // Coordinates of the nibbles from the lowest: 0 2 4 6 1 3 5 7.
  std::vector<std::byte> packed(BlockBytes(CodecId::kLm4, DType::kF32, 1, 8));
  const uint32_t word = 0xFEDCBA98u;
  std::memcpy(packed.data(), &word, sizeof(word));
  PutScale(packed, 16, FromFloat<Float16>(2.0f));
  const HostKv out = DecodeOne(OneToken(CodecId::kLm4, kFlagHadamard), packed, DType::kF32, 8);
  std::vector<float> want(8);
  const int coordinates[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  for (int nibble = 0; nibble < 8; ++nibble) {
    want[coordinates[nibble]] = 2.0f * kLm4Levels[8 + nibble];
  }
  UnrotateByHadamard(HadamardOf(8), want.data());
  for (int d = 0; d < 8; ++d) EXPECT_EQ(out.Get(0, 0, 0, d), want[d]) << d;
}

TEST(Decode, MakesNoInfinityOfNumbersInF16) {
  std::vector<std::byte> packed(BlockBytes(CodecId::kI8t, DType::kF16, 1, 64));
  packed[0] = std::byte{127};
  packed[1] = std::byte{0x80};  // -128, which no encoder writes
  PutScale(packed, 64, FromFloat<Float16>(516.0f));
  const HostKv out = DecodeOne(OneToken(CodecId::kI8t, 0), packed, DType::kF16, 64);
  EXPECT_EQ(out.Get(0, 0, 0, 0), 65504.0f);
  EXPECT_EQ(out.Get(0, 0, 0, 1), -65504.0f);
}

TEST(Decode, MakesNoNumbersOfScalesThatAreNone) {
  for (const uint16_t bits : {0x7C00, 0xFC00, 0x7E01}) {
    for (const CodecId codec : {CodecId::kI8t, CodecId::kLm4}) {
      std::vector<std::byte> packed(BlockBytes(codec, DType::kBF16, 1, 64), std::byte{0x3F});
      PutScale(packed, ScaleOffset(codec, DType::kBF16, 1, 64), Float16{bits});
      const HostKv out = DecodeOne(OneToken(codec, kFlagHadamard), packed, DType::kBF16, 64);
      for (int d = 0; d < 64; ++d) EXPECT_FALSE(std::isfinite(out.Get(0, 0, 0, d))) << bits << d;
    }
  }
}

// Keys with a large constant offset before their rotation, as some models have.
struct OffsetKeys {
  static constexpr int64_t kTokens = 512;
  static constexpr int64_t kHeadDim = 128;

  OffsetKeys(RopeLayout layout, int32_t bands)
      : table(support::RotationOf(layout, bands, kTokens)),
        keys({.dtype = DType::kF32, .tokens = kTokens, .head_dim = kHeadDim}) {
    std::vector<float> offset = support::RandomFloats(kHeadDim, 31);
    const std::vector<float> noise = support::RandomFloats(kTokens * kHeadDim, 32);
    double length = 0;
    for (const float x : offset) length += double{x} * x;
    for (float& x : offset) {
      x = static_cast<float>(x * 50.0 * std::sqrt(kHeadDim / length));  // |mu| = 50 sigma
      mean.push_back(FromFloat<Float16>(x));
    }
    for (int64_t token = 0; token < kTokens; ++token) {
      std::vector<float> x(kHeadDim);
      for (int64_t d = 0; d < kHeadDim; ++d) x[d] = offset[d] + noise[token * kHeadDim + d];
      RotateRow(RowOf(table, token), x.data());
      for (int64_t d = 0; d < kHeadDim; ++d) keys.Set(0, 0, token, d, x[d]);
    }
  }

  // NMSE of keys decoded as slots of every second token.
  double Nmse(CodecSpec codec) const {
    const KeepList keep = support::KeepEvery(keys.refs(), 1, 2);
    const support::PackedCase plan = support::PlanRows(keys.refs(), keep, codec);
    std::vector<std::byte> packed(plan.bytes);
    EncodeArgs encode;
    encode.rows = keys.refs();
    encode.keep = &keep;
    encode.table = plan.table;
    encode.mean_key = DenseView(mean.data(), 1, 1, kHeadDim);
    encode.rotation = &table;
    encode.packed = packed;
    EncodeCounts counts;
    EXPECT_TRUE(ref::Encode(/*stop=*/nullptr, encode, &counts).ok());

    RotationTable packed_rows = table;  // the slots keep the positions of their tokens
    packed_rows.row_of_slot.assign(keep.tokens.begin(), keep.tokens.end());
    HostKv out({.dtype = DType::kF32, .tokens = keep.Count(0, 0), .head_dim = kHeadDim});
    DecodeArgs decode;
    decode.packed = packed;
    decode.table = plan.table;
    decode.mean_key = encode.mean_key;
    decode.rotation = &packed_rows;
    decode.rows = out.refs();
    EXPECT_TRUE(ref::Decode(/*stop=*/nullptr, decode).ok());
    double error = 0, norm = 0;
    for (int64_t slot = 0; slot < keep.Count(0, 0); ++slot) {
      for (int64_t d = 0; d < kHeadDim; ++d) {
        const double x = keys.Get(0, 0, keep.Row(0, 0)[slot], d);
        error += std::pow(x - out.Get(0, 0, slot, d), 2);
        norm += x * x;
      }
    }
    EXPECT_NEAR(counts.squared_norm, norm, 1e-6 * norm);
    EXPECT_NEAR(counts.squared_error, error, 2e-3 * error + 1e-9 * norm);
    return error / norm;
  }

  RotationTable table;
  HostKv keys;
  std::vector<Float16> mean;
};

TEST(RopeMean, RemovesAConstantOffsetFromTheError) {
  for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
    for (const int32_t bands : {64, 20}) {  // whole and partial rotary
      const OffsetKeys keys(layout, bands);
      for (const CodecId id : {CodecId::kLm4, CodecId::kI8t}) {
        const double plain = keys.Nmse({id, kFlagHadamard});
        const double without_mean =
            keys.Nmse({id, static_cast<uint8_t>(kFlagHadamard | kFlagRopeMean)});
        EXPECT_LT(without_mean, .02 * plain) << static_cast<int>(id) << " bands " << bands;
      }
    }
  }
}

TEST(RopeMean, IsZeroWhereTheStoredMeanIsNotANumber) {
  OffsetKeys keys(RopeLayout::kHalf, 64);
  for (Float16& mean : keys.mean) mean = Float16{0x7C00};
  const double poisoned = keys.Nmse({CodecId::kI8t, kFlagRopeMean});
  EXPECT_DOUBLE_EQ(poisoned, keys.Nmse({CodecId::kI8t, 0}));
}

}  // namespace
}  // namespace kvern
