// Codes, scales and counts are the same bits everywhere.
#include <cstring>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"
#include "tests/support/packed_case.h"

namespace kvern {
namespace {

using support::HostKv;
using support::HostKvSpec;

const std::vector<CodecSpec> kCodecs = {
    {CodecId::kRaw16, 0},
    {CodecId::kI8t, 0},
    {CodecId::kI8t, kFlagHadamard},
    {CodecId::kI8t, kFlagHadamard | kFlagRopeMean},
    {CodecId::kLm4, kFlagHadamard},
    {CodecId::kLm4, kFlagHadamard | kFlagRopeMean},
    {CodecId::kFp8t, 0},
    {CodecId::kFp8t, kFlagHadamard | kFlagRopeMean},
    {CodecId::kKch4, 0},
    {CodecId::kI4t, 0},
    {CodecId::kI4t, kFlagHadamard | kFlagRopeMean},
    {CodecId::kSfv2, kFlagHadamard},
    {CodecId::kSfv3, kFlagHadamard},
    {CodecId::kSfv3, kFlagHadamard | kFlagRopeMean},
};

// ParitySpecs and every form of the rotation: base matrices on runs of 2, 4, 8, 16 and 32, blocks
// of two sizes.
std::vector<HostKvSpec> CodecSpecs() {
  std::vector<HostKvSpec> specs = support::ParitySpecs();
  for (const int64_t head_dim : {40, 48, 88, 96, 112, 160, 192, 256, 384, 1000}) {
    HostKvSpec spec;
    spec.dtype = DType::kF32;
    spec.tokens = 5;
    spec.head_dim = head_dim;
    specs.push_back(spec);
  }
  return specs;
}

// NaN, infinities, zero rows, the largest and the smallest numbers.
void Spoil(HostKv& kv) {
  const HostKvSpec& spec = kv.spec();
  const float odd[] = {std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity(),
                       65504.0f,
                       -1e30f,
                       1e-40f,
                       -0.0f};
  for (int64_t head = 0; head < spec.kv_heads; ++head) {
    for (int64_t token = 0; token < kv.Length(head); ++token) {
      if (token % 5 == 1) kv.Set(0, head, token, token % spec.head_dim, odd[token % 7]);
      if (token % 11 != 3) continue;
      const float value = token % 2 == 0 ? 0.0f : odd[token % 7];
      for (int64_t d = 0; d < spec.head_dim; ++d) kv.Set(0, head, token, d, value);
    }
  }
}

TEST(EncodeParity, EveryBackendWritesTheSameBytesAndCounts) {
  for (const HostKvSpec& spec : CodecSpecs()) {
    HostKv kv = support::RandomKv(spec, 51);
    Spoil(kv);
    const KeepList keep = support::KeepEvery(kv.refs(), 0, 2);
    const RopeLayout layout =
        spec.head_dim % 16 == 0 ? RopeLayout::kHalf : RopeLayout::kInterleaved;
    const RotationTable rotation =
        support::RotationOf(layout, static_cast<int32_t>(spec.head_dim / 2 - 1), spec.tokens);
    std::vector<Float16> mean;
    for (const float x : support::RandomFloats(spec.layers * spec.kv_heads * spec.head_dim, 52)) {
      mean.push_back(FromFloat<Float16>(x));
    }
    for (const CodecSpec& codec : kCodecs) {
      SCOPED_TRACE(absl::StrCat(support::Describe(spec), " codec ", static_cast<int>(codec.id),
                                " flags ", codec.flags));
      const support::PackedCase plan = support::PlanRows(kv.refs(), keep, codec);
      std::vector<EncodeCounts> counts;
      const std::vector<std::byte> zeros(plan.bytes);
      support::ExpectParity(zeros, [&](Backend& backend, std::span<std::byte> packed) {
        EncodeArgs args;
        args.rows = kv.refs();
        args.keep = &keep;
        args.table = plan.table;
        args.mean_key = DenseView(static_cast<const Float16*>(mean.data()), spec.layers,
                                  spec.kv_heads, spec.head_dim);
        args.rotation = &rotation;
        args.packed = packed;
        counts.emplace_back();
        return backend.Encode(args, &counts.back());
      });
      for (const EncodeCounts& other : counts) {
        EXPECT_EQ(other.nonfinite, counts[0].nonfinite);
        EXPECT_EQ(other.squared_error, counts[0].squared_error);
        EXPECT_EQ(other.squared_norm, counts[0].squared_norm);
      }
    }
  }
}

TEST(EncodeParity, EveryBackendStopsWhenAsked) {
  HostKvSpec spec;
  spec.tokens = 10;
  HostKv kv = support::RandomKv(spec, 53);
  const KeepList keep = support::KeepEvery(kv.refs(), 0, 1);
  const support::PackedCase plan = support::PlanRows(kv.refs(), keep, {CodecId::kI8t, 0});
  const support::AlwaysCancelled stop;
  support::ForEachBackend([&](Backend& backend) {
    std::vector<std::byte> packed(plan.bytes);
    EncodeArgs encode;
    encode.rows = kv.refs();
    encode.keep = &keep;
    encode.table = plan.table;
    encode.packed = packed;
    DecodeArgs decode;
    decode.packed = packed;
    decode.table = plan.table;
    decode.rows = kv.refs();
    EncodeCounts counts;
    backend.Bind(&stop);
    EXPECT_EQ(backend.Encode(encode, &counts).code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(backend.Decode(decode).code(), absl::StatusCode::kCancelled);
  });
}

}  // namespace
}  // namespace kvern
