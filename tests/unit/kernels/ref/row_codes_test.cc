// What the vector, affine and float codes lose, that no input breaks them, where their bits stand.
#include "kernels/ref/row_codes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/coding.h"
#include "tests/support/coded_kv.h"

namespace kvern {
namespace {

using support::Coded;
using support::Compare;
using support::DecodeAll;
using support::EncodeAll;
using support::Fidelity;
using support::Gaussian;
using support::HostKv;
using support::HostKvSpec;
using support::RandomKv;

constexpr CodecSpec kSfv3 = {CodecId::kSfv3, kFlagHadamard};
constexpr CodecSpec kSfv2 = {CodecId::kSfv2, kFlagHadamard};
constexpr CodecSpec kI4 = {CodecId::kI4t, 0};
constexpr CodecSpec kI4H = {CodecId::kI4t, kFlagHadamard};
constexpr CodecSpec kFp8 = {CodecId::kFp8t, 0};
constexpr CodecSpec kFp8H = {CodecId::kFp8t, kFlagHadamard};
constexpr CodecSpec kKch4 = {CodecId::kKch4, 0};
constexpr CodecSpec kAll[] = {kSfv3, kSfv2, kI4, kI4H, kFp8, kFp8H, kKch4};

struct Oracle {
  CodecSpec codec;
  double nmse;
  double slope;
  double slope_tolerance;
};

// quantization.md 5.2 and 6; 2.4 has sfv2's unbiased slope and that it costs an eighth in NMSE:
// .1005 * (1 + .1005) = .1117 for a code whose error is orthogonal to what it decodes to.
TEST(Codes, HaveThePublishedErrorAndSlopeOnGaussianVectors) {
  const Oracle oracles[] = {
      {kSfv3, .0258, .974 / (1 - .0258) * std::sqrt(1 - .0258), .004},
      {kSfv2, .1117, 1.0, .001},
      {kI4, .0080, 1.0, .002},
      {kI4H, .0080, 1.0, .002},
      {kKch4, .0080, 1.0, .002},
      {kFp8, 6.6e-4, 1.0, .001},
      {kFp8H, 6.6e-4, 1.0, .001},
  };
  const HostKv kv = RandomKv(Gaussian(10240, 128), 41);
  for (const Oracle& oracle : oracles) {
    SCOPED_TRACE(static_cast<int>(oracle.codec.id));
    const Coded coded = EncodeAll(kv, oracle.codec);
    const Fidelity fidelity = Compare(kv, DecodeAll(coded, kv.spec()));
    EXPECT_NEAR(fidelity.nmse, oracle.nmse, .03 * oracle.nmse);
    EXPECT_NEAR(fidelity.slope, oracle.slope, oracle.slope_tolerance);
    EXPECT_NEAR(coded.counts.squared_error / coded.counts.squared_norm, fidelity.nmse,
                1e-4 * fidelity.nmse);
  }
}

// A scalar code of 3 bits: .033966 (Lloyd-Max), and no vector code is worth its table unless it
// beats that by a fifth.
TEST(Sfv3, BeatsAScalarCodeOfTheSameRate) {
  const HostKv kv = RandomKv(Gaussian(4096, 128), 42);
  EXPECT_LT(Compare(kv, DecodeAll(EncodeAll(kv, kSfv3), kv.spec())).nmse, .79 * .033966);
}

TEST(Codes, WorkAtEveryHeadDim) {
  for (const int64_t head_dim : {8, 24, 64, 80, 88, 96, 128, 256, 1024}) {
    SCOPED_TRACE(head_dim);
    const HostKv kv = RandomKv(Gaussian(320, head_dim), 43);
    const auto nmse = [&](CodecSpec codec) {
      return Compare(kv, DecodeAll(EncodeAll(kv, codec), kv.spec())).nmse;
    };
    EXPECT_NEAR(nmse(kSfv3), .023, .005);
    EXPECT_NEAR(nmse(kSfv2), .11, .025);
    EXPECT_LT(nmse(kI4), .0165);  // grows with the range of a group
    EXPECT_NEAR(nmse(kKch4), .008, .001);
    EXPECT_NEAR(nmse(kFp8), 5.5e-4, 2e-4);
  }
}

TEST(I4t, HasAScalePer64CoordinatesWhere64DividesThem) {
  HostKv kv(Gaussian(1, 128));
  for (int64_t d = 0; d < 128; ++d) kv.Set(0, 0, 0, d, static_cast<float>(d < 64 ? d % 16 : 1000));
  const HostKv two = DecodeAll(EncodeAll(kv, kI4), kv.spec());
  for (int64_t d = 0; d < 128; ++d) EXPECT_EQ(two.Get(0, 0, 0, d), kv.Get(0, 0, 0, d)) << d;

  HostKv one(Gaussian(1, 96));
  for (int64_t d = 0; d < 96; ++d) one.Set(0, 0, 0, d, static_cast<float>(d < 64 ? d % 16 : 1000));
  const HostKv coarse = DecodeAll(EncodeAll(one, kI4), one.spec());
  EXPECT_EQ(coarse.Get(0, 0, 0, 15), coarse.Get(0, 0, 0, 14));
}

TEST(Kch4, HasAScalePerChannelAndLeavesAShortBlockRaw) {
  HostKv kv(Gaussian(64 + 5, 16));
  for (int64_t token = 0; token < 69; ++token) {
    for (int64_t d = 0; d < 16; ++d) {
      kv.Set(0, 0, token, d,
             token < 64 ? static_cast<float>((token + d) % 16 << d % 8) : .1f * token);
    }
  }
  const Coded coded = EncodeAll(kv, kKch4);
  ASSERT_EQ(coded.table.size(), 2u);
  EXPECT_EQ(coded.table[1].codec, static_cast<int64_t>(CodecId::kRaw16));
  EXPECT_EQ(Compare(kv, DecodeAll(coded, kv.spec())).nmse, 0.0);
}

TEST(AffineAndFloatCodes, AreKeptWhenWhatTheyDecodedIsCodedAgain) {
  const HostKv kv = RandomKv(Gaussian(128, 80), 44);
  for (const CodecSpec codec : {kI4, kKch4, kFp8}) {
    const HostKv once = DecodeAll(EncodeAll(kv, codec), kv.spec());
    const HostKv twice = DecodeAll(EncodeAll(once, codec), kv.spec());
    EXPECT_LT(Compare(once, twice).nmse, 1e-6) << static_cast<int>(codec.id);
  }
}

TEST(Codes, KeepZeroRowsExactly) {
  const HostKv kv(Gaussian(64, 64));
  for (const CodecSpec codec : kAll) {
    const Coded coded = EncodeAll(kv, codec);
    for (const std::byte byte : coded.packed) ASSERT_EQ(byte, std::byte{0});
    EXPECT_EQ(DecodeAll(coded, kv.spec()).Get(0, 0, 63, 5), 0.0f);
  }
}

TEST(Codes, CountAndClampWhatIsNotANumber) {
  HostKv kv = RandomKv(Gaussian(64, 80), 45);
  kv.Set(0, 0, 0, 5, std::numeric_limits<float>::quiet_NaN());
  kv.Set(0, 0, 1, 6, -std::numeric_limits<float>::infinity());
  kv.Set(0, 0, 2, 7, 1e30f);
  kv.Set(0, 0, 3, 8, 65504.0f);  // the largest that is fine
  for (const CodecSpec codec : kAll) {
    SCOPED_TRACE(static_cast<int>(codec.id));
    const Coded coded = EncodeAll(kv, codec);
    EXPECT_EQ(coded.counts.nonfinite, 3);
    EXPECT_TRUE(std::isfinite(coded.counts.squared_error));
    const HostKv decoded = DecodeAll(coded, kv.spec());
    for (int64_t token = 0; token < 64; ++token) {
      for (int64_t d = 0; d < 80; ++d) ASSERT_TRUE(std::isfinite(decoded.Get(0, 0, token, d)));
    }
    EXPECT_NEAR(decoded.Get(0, 0, 1, 6), -65504.0f, 65504.0f * .6f);
    EXPECT_NEAR(decoded.Get(0, 0, 2, 7), 65504.0f, 65504.0f * .6f);
  }
}

TEST(Codes, StayFiniteForTheLargestAndSmallestRows) {
  for (const float value : {65504.0f, -65504.0f, 1e-45f, 1e-30f, 6e-8f, -3e-5f}) {
    for (const DType dtype : {DType::kF32, DType::kF16}) {
      HostKvSpec spec = Gaussian(64, 88);
      spec.dtype = dtype;
      HostKv kv(spec);
      for (int64_t token = 0; token < 64; ++token) {
        for (int64_t d = 0; d < 88; ++d) kv.Set(0, 0, token, d, value);
      }
      for (const CodecSpec codec : kAll) {
        const HostKv decoded = DecodeAll(EncodeAll(kv, codec), spec);
        // A scale that underflows costs at most half of its unit per level.
        const float allowed = std::fabs(value) * 1.5f + 448 * 6e-8f;
        for (int64_t d = 0; d < 88; ++d) {
          ASSERT_NEAR(decoded.Get(0, 0, 7, d), value, allowed) << static_cast<int>(codec.id);
        }
      }
    }
  }
}

// Four coordinates of one block: index in the low byte order, signs from the lowest bit.
TEST(Sfv, PutsIndexAndSignsWhereTheFormatSays) {
  std::vector<float> y = {1.0f, -1.0f, 1.0f, -1.0f, -1.0f, -1.0f, 1.0f, 1.0f};
  std::vector<std::byte> codes(2), signs(1), scales(2);
  ref::CodeRow(CodecId::kSfv3, 8.0f, y, {codes.data(), signs.data(), scales.data(), nullptr});
  EXPECT_EQ(signs[0], std::byte{0b00111010});
  EXPECT_EQ(codes[0], codes[1]);

  y = {1.0f, -1.0f, 1.0f, -1.0f, -1.0f, -1.0f, 1.0f, 1.0f};
  codes.assign(2, std::byte{0});
  ref::CodeRow(CodecId::kSfv2, 8.0f, y, {codes.data(), nullptr, scales.data(), nullptr});
  EXPECT_EQ(codes[0] & std::byte{15}, std::byte{0b1010});
  EXPECT_EQ(codes[1] & std::byte{15}, std::byte{0b0011});
  EXPECT_EQ(codes[0] >> 4, codes[1] >> 4);
}

TEST(Codes, AreThoseOfTheTokenAlone) {
  const HostKv kv = RandomKv(Gaussian(150, 96), 46);
  for (const CodecSpec codec : {kSfv3, kSfv2, kI4, kFp8}) {
    const HostKv want = DecodeAll(EncodeAll(kv, codec), kv.spec());
    HostKv alone(Gaussian(1, 96));
    for (int64_t d = 0; d < 96; ++d) alone.Set(0, 0, 0, d, kv.Get(0, 0, 77, d));
    const HostKv got = DecodeAll(EncodeAll(alone, codec), alone.spec());
    for (int64_t d = 0; d < 96; ++d) EXPECT_EQ(got.Get(0, 0, 0, d), want.Get(0, 0, 77, d));
  }
}

}  // namespace
}  // namespace kvern
