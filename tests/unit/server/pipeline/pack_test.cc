// Packing and unpacking: what comes back, what is counted, where the mean key comes from.
#include <cmath>
#include <cstring>

#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "tests/unit/server/pipeline/packed_sequence.h"

namespace kvern::pipeline {
namespace {

support::HostKvSpec Spec() {
  support::HostKvSpec spec = F32({.layers = 2, .kv_heads = 2, .tokens = 200, .head_dim = 64});
  spec.dtype = DType::kBF16;
  return spec;
}

PolicyWords Coded(const std::string& k, const std::string& v) {
  PolicyWords words;
  words.budget = TokenBudget{150};
  words.k_codec = k;
  words.v_codec = v;
  return words;
}

TEST(Pack, GivesRawTokensBackBitForBit) {
  PackedSequence raw(Spec(), Coded("raw16", "raw16"));
  DenseTarget target(raw.sequence.input(), raw.plan.max_kept);
  const absl::Status status = Unpack(*raw.backend, raw.sequence.model(), raw.packed,
                                     raw.plan.kept_positions, target.ToUnpack());
  ASSERT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(RelativeError(raw.plan, raw.sequence.keys(), target.keys()), 0.0);
  EXPECT_EQ(RelativeError(raw.plan, raw.sequence.values(), target.values()), 0.0);
}

TEST(Pack, GivesCodedTokensBackWithinTheirCodecsError) {
  const struct {
    const char* k;
    const char* v;
    double most;
  } kCases[] = {
      {"i8t+rm", "i8t", 0.015},    {"H+i8t+rm", "H+i8t", 0.015}, {"lm4+rm", "lm4", 0.12},
      {"fp8t+rm", "H+fp8t", 0.03}, {"i4t+rm", "i4t", 0.12},      {"H+i4t+rm", "H+i4t", 0.12},
      {"kch4", "i8t", 0.12},       {"sfv3+rm", "sfv3", 0.2},     {"sfv3+rm", "sfv2", 0.4}};
  for (const auto& codec : kCases) {
    SCOPED_TRACE(codec.k);
    PackedSequence coded(Spec(), Coded(codec.k, codec.v));
    DenseTarget target(coded.sequence.input(), coded.plan.max_kept);
    const absl::Status status = Unpack(*coded.backend, coded.sequence.model(), coded.packed,
                                       coded.plan.kept_positions, target.ToUnpack());
    ASSERT_TRUE(status.ok()) << status.ToString();
    const double k = RelativeError(coded.plan, coded.sequence.keys(), target.keys());
    const double v = RelativeError(coded.plan, coded.sequence.values(), target.values());
    EXPECT_GT(k, 0.0);
    EXPECT_LT(k, codec.most);
    EXPECT_GT(v, 0.0);
    EXPECT_LT(v, codec.most);
    EXPECT_GT(coded.packed.k_counts.squared_error, 0.0);
    EXPECT_EQ(coded.packed.v_counts.nonfinite, 0);
  }
}

TEST(Pack, KeepsTheSinksRawUnderAFourBitCode) {
  PackedSequence coded(Spec(), Coded("lm4+rm", "lm4"));
  DenseTarget target(coded.sequence.input(), coded.plan.max_kept);
  ASSERT_TRUE(Unpack(*coded.backend, coded.sequence.model(), coded.packed,
                     coded.plan.kept_positions, target.ToUnpack())
                  .ok());
  for (int64_t token = 0; token < 4; ++token) {
    for (int64_t d = 0; d < 64; ++d) {
      EXPECT_EQ(target.keys().Get(1, 1, token, d), coded.sequence.keys().Get(1, 1, token, d));
      EXPECT_EQ(target.values().Get(1, 1, token, d), coded.sequence.values().Get(1, 1, token, d));
    }
  }
}

TEST(Pack, LeavesKeysRawThatFillNoBlockOfChannels) {
  PackedSequence coded(Spec(), Coded("kch4", "lm4"));
  for (const PackedRow& row : coded.packed.table) {
    if (row.role != 0 || row.first_slot < 4) continue;
    const CodecId want = row.tokens == 64 ? CodecId::kKch4 : CodecId::kRaw16;
    EXPECT_EQ(row.codec, static_cast<int64_t>(want)) << row.first_slot;
    EXPECT_EQ(row.flags, 0);
  }
}

TEST(Pack, WeighsWhatTheByteAccountSays) {
  for (const char* k : {"i8t", "i8t+rm", "lm4+rm", "raw16", "fp8t", "kch4", "i4t+rm", "sfv3+rm"}) {
    for (const char* v : {"lm4", "fp8t", "i4t", "sfv3", "sfv2"}) {
      PackedSequence coded(Spec(), Coded(k, v));
      EXPECT_EQ(coded.packed.Bytes(),
                PackedBytes(coded.sequence.input(), coded.policy, coded.plan.counts.counts))
          << k << " " << v;
    }
  }
}

TEST(Pack, MeasuresTheMeanKeyOverTokensAfterTheSinks) {
  PackedSequence coded(Spec(), Coded("i8t+rm", "i8t"));
  const SequenceInput& input = coded.sequence.input();
  const RopeSpec& rope = coded.sequence.model().rope;
  double re = 0;
  for (int64_t token = 4; token < 200; ++token) {
    const double angle = double{rope.inv_freq[3]} * static_cast<double>(token);
    re += coded.sequence.keys().Get(1, 0, token, 3) * std::cos(angle) +
          coded.sequence.keys().Get(1, 0, token, 3 + 32) * std::sin(angle);
  }
  const float got = ToFloat(coded.packed.mean_key[(1 * input.KvHeads() + 0) * 64 + 3]);
  EXPECT_NEAR(got, re / 196, 1e-3);  // f16 of a mean below 1
}

TEST(Pack, UsesAFrozenMeanKeyAsItIs) {
  PackedSequence coded(Spec(), Coded("i8t+rm", "i8t"));
  std::vector<Float16> frozen(2 * 2 * 64, FromFloat<Float16>(0.25f));
  const auto packed =
      Pack(*coded.backend, coded.sequence.input(), coded.policy, coded.plan, frozen);
  ASSERT_TRUE(packed.ok()) << packed.status().ToString();
  EXPECT_EQ(std::memcmp(packed->mean_key.data(), frozen.data(), frozen.size() * 2), 0);
  EXPECT_NE(packed->blocks, coded.packed.blocks);
  frozen.pop_back();
  const auto wrong = Pack(*coded.backend, coded.sequence.input(), coded.policy, coded.plan, frozen);
  ASSERT_FALSE(wrong.ok());
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Pack, AsksForRopeToRemoveTheMeanKey) {
  PackedSequence coded(Spec(), Coded("i8t", "i8t"));
  coded.policy.codecs.k.flags |= kFlagRopeMean;
  coded.sequence.model().rope.inv_freq.clear();
  const auto packed = Pack(*coded.backend, coded.sequence.input(), coded.policy, coded.plan, {});
  ASSERT_FALSE(packed.ok());
  EXPECT_EQ(ReasonOf(packed.status()), "ROPE_UNKNOWN");
}

TEST(Pack, StoresRenumberedKeysAtTheirNewAngles) {
  PolicyWords words = Coded("raw16", "raw16");
  words.positions = PositionMode::kRenumber;
  PackedSequence renumbered(Spec(), words);
  DenseTarget unpacked(renumbered.sequence.input(), renumbered.plan.max_kept);
  DenseTarget moved(renumbered.sequence.input(), renumbered.plan.max_kept);
  ASSERT_TRUE(Unpack(*renumbered.backend, renumbered.sequence.model(), renumbered.packed,
                     renumbered.plan.kept_positions, unpacked.ToUnpack())
                  .ok());
  ASSERT_TRUE(Move(*renumbered.backend, renumbered.sequence.input(), renumbered.policy,
                   renumbered.plan, moved.ToMove())
                  .ok());
  for (int64_t slot = 0; slot < renumbered.plan.max_kept; ++slot) {
    for (int64_t d = 0; d < 64; ++d) {
      EXPECT_EQ(unpacked.keys().Get(1, 0, slot, d), moved.keys().Get(1, 0, slot, d));
    }
  }
}

TEST(Pack, RemovesTheMeanFromRenumberedKeysAtTheirNewAngles) {
  PolicyWords words = Coded("lm4+rm", "lm4");
  words.positions = PositionMode::kRenumber;
  PackedSequence renumbered(Spec(), words);
  DenseTarget unpacked(renumbered.sequence.input(), renumbered.plan.max_kept);
  DenseTarget moved(renumbered.sequence.input(), renumbered.plan.max_kept);
  ASSERT_TRUE(Unpack(*renumbered.backend, renumbered.sequence.model(), renumbered.packed,
                     renumbered.plan.kept_positions, unpacked.ToUnpack())
                  .ok());
  ASSERT_TRUE(Move(*renumbered.backend, renumbered.sequence.input(), renumbered.policy,
                   renumbered.plan, moved.ToMove())
                  .ok());
  double error = 0, norm = 0;
  for (int64_t slot = 0; slot < renumbered.plan.max_kept; ++slot) {
    for (int64_t d = 0; d < 64; ++d) {
      const double want = moved.keys().Get(0, 1, slot, d);
      error += std::pow(unpacked.keys().Get(0, 1, slot, d) - want, 2);
      norm += want * want;
    }
  }
  EXPECT_LT(std::sqrt(error / norm), 0.12);
}

TEST(Pack, PacksAnEmptySequenceIntoNothing) {
  support::HostKvSpec spec = Spec();
  spec.tokens = 0;
  PackedSequence empty(spec, Coded("i8t+rm", "lm4"));
  EXPECT_EQ(empty.packed.Bytes(), 0);
  DenseTarget target(empty.sequence.input(), 0);
  EXPECT_TRUE(
      Unpack(*empty.backend, empty.sequence.model(), empty.packed, {}, target.ToUnpack()).ok());
}

}  // namespace
}  // namespace kvern::pipeline
