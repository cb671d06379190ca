// Heads of 128, which have kernels of their own: every dtype, rotation, alignment and length.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/base/kv_row.h"
#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"
#include "tests/support/packed_case.h"

namespace kvern {
namespace {

constexpr int64_t kHeads = 2;
constexpr int64_t kDim = 128;
constexpr size_t kAlign = 64;

// Memory that starts `offset` bytes after a multiple of 64.
class AlignedBytes {
 public:
  AlignedBytes(int64_t bytes, size_t offset) : bytes_(bytes + 2 * kAlign) {
    const size_t past = reinterpret_cast<uintptr_t>(bytes_.data()) % kAlign;
    span_ = std::span(bytes_).subspan((kAlign - past) % kAlign + offset, bytes);
  }
  std::span<std::byte> span() const { return span_; }

 private:
  std::vector<std::byte> bytes_;
  std::span<std::byte> span_;
};

struct Case {
  DType dtype = DType::kBF16;
  int64_t tokens = 1;
  CodecSpec codec;
  RopeLayout layout = RopeLayout::kHalf;
  int32_t bands = 64;
  size_t offset = 0;  // of all memory
};

// Ordinary rows, and rows of zeros, of numbers whose scale is subnormal, whose squares vanish, and
// with what has to be sanitised.
std::vector<float> Values(int64_t tokens) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> values = support::RandomFloats(kHeads * tokens * kDim, /*seed=*/81);
  for (int64_t row = 0; row < kHeads * tokens; ++row) {
    float* x = values.data() + row * kDim;
    const float factors[] = {1.0f, 1.0f, 0.0f, 2e-6f, 1e-24f, 3e4f};
    for (int64_t d = 0; d < kDim; ++d) x[d] *= factors[row % 6];
    if (row % 7 == 1) x[row % kDim] = row % 2 == 0 ? -kInfinity : std::nanf("");
    if (row % 7 == 4) x[(row + 64) % kDim] = -1e30f;
  }
  return values;
}

struct Outcome {
  std::vector<std::byte> packed;
  std::vector<std::byte> decoded;
  EncodeCounts counts;
};

class RegisterRows {
 public:
  explicit RegisterRows(const Case& c)
      : case_(c),
        bytes_(kHeads * c.tokens * kDim * SizeOf(c.dtype)),
        in_(bytes_, c.offset),
        rotation_(support::RotationOf(c.layout, c.bands, c.tokens)) {
    refs_ = {DenseKvRef(c.dtype, in_.span().data(), kHeads, c.tokens, kDim)};
    const std::vector<float> values = Values(c.tokens);
    for (int64_t row = 0; row < kHeads * c.tokens; ++row) {
      StoreKvRow(refs_[0], values.data() + row * kDim,
                 refs_[0].Address(row / c.tokens, row % c.tokens));
    }
    for (const float x : support::RandomFloats(kHeads * kDim, /*seed=*/82)) {
      mean_.push_back(FromFloat<Float16>(x));
    }
    mean_[5] = Float16{0x7E00};  // a mean that is no number counts as 0
    keep_ = support::KeepEvery(refs_, 0, 1);
    plan_ = support::PlanRows(refs_, keep_, c.codec);
  }

  Outcome Run(Backend& backend) const {
    const auto mean = DenseView(mean_.data(), int64_t{1}, kHeads, kDim);
    const AlignedBytes packed(plan_.bytes, case_.offset), out(bytes_, case_.offset);
    Outcome outcome;
    EncodeArgs encode = {refs_, &keep_, plan_.table, mean, &rotation_, packed.span()};
    EXPECT_TRUE(backend.Encode(encode, &outcome.counts).ok());
    const std::vector<KvRef> to = {
        DenseKvRef(case_.dtype, out.span().data(), kHeads, case_.tokens, kDim)};
    EXPECT_TRUE(backend.Decode({packed.span(), plan_.table, mean, &rotation_, to}).ok());
    outcome.packed.assign(packed.span().begin(), packed.span().end());
    outcome.decoded.assign(out.span().begin(), out.span().end());
    return outcome;
  }

 private:
  Case case_;
  int64_t bytes_;
  AlignedBytes in_;
  RotationTable rotation_;
  std::vector<KvRef> refs_;
  std::vector<Float16> mean_;
  KeepList keep_;
  support::PackedCase plan_;
};

void ExpectTheSameEverywhere(const Case& c) {
  SCOPED_TRACE(absl::StrCat(Name(c.dtype), " tokens=", c.tokens,
                            " codec=", static_cast<int>(c.codec.id), " flags=", c.codec.flags,
                            " bands=", c.bands, " layout=", static_cast<int>(c.layout),
                            " offset=", c.offset));
  const RegisterRows rows(c);
  std::vector<Outcome> outcomes;
  support::ForEachBackend([&](Backend& backend) {
    outcomes.push_back(rows.Run(backend));
    const Outcome &want = outcomes.front(), &got = outcomes.back();
    EXPECT_EQ(got.packed, want.packed);
    EXPECT_EQ(got.decoded, want.decoded);
    EXPECT_EQ(got.counts.nonfinite, want.counts.nonfinite);
    EXPECT_EQ(got.counts.squared_norm, want.counts.squared_norm);
    EXPECT_EQ(got.counts.squared_error, want.counts.squared_error);
  });
}

const std::vector<CodecSpec> kCodecs = {
    {CodecId::kI8t, 0},
    {CodecId::kI8t, kFlagHadamard},
    {CodecId::kI8t, kFlagRopeMean},
    {CodecId::kI8t, kFlagHadamard | kFlagRopeMean},
    {CodecId::kFp8t, 0},
    {CodecId::kFp8t, kFlagHadamard | kFlagRopeMean},
    {CodecId::kFp8t, kFlagRopeMean},
    {CodecId::kI4t, 0},
    {CodecId::kI4t, kFlagRopeMean},
    {CodecId::kI4t, kFlagHadamard},
    {CodecId::kKch4, 0},
    {CodecId::kSfv2, kFlagHadamard},
    {CodecId::kSfv2, kFlagHadamard | kFlagRopeMean},
    {CodecId::kSfv3, kFlagHadamard},
    {CodecId::kSfv3, kFlagHadamard | kFlagRopeMean},
    {CodecId::kLm4, kFlagHadamard},
    {CodecId::kLm4, kFlagHadamard | kFlagRopeMean},
};

TEST(RegisterRowsParity, EveryDTypeAlignmentAndLengthIsCodedTheSame) {
  for (const CodecSpec codec : kCodecs) {
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      for (const int64_t tokens : {1, 2, 17, 64, 65, 131}) {
        ExpectTheSameEverywhere({.dtype = dtype, .tokens = tokens, .codec = codec});
      }
      ExpectTheSameEverywhere({.dtype = dtype, .tokens = 35, .codec = codec, .offset = 16});
    }
  }
}

TEST(RegisterRowsParity, EveryRotationOfTheMeanIsTheSame) {
  for (const CodecSpec codec : kCodecs) {
    if ((codec.flags & kFlagRopeMean) == 0) continue;
    for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
      for (const int32_t bands : {64, 40}) {
        ExpectTheSameEverywhere({.tokens = 67, .codec = codec, .layout = layout, .bands = bands});
      }
    }
  }
}

}  // namespace
}  // namespace kvern
