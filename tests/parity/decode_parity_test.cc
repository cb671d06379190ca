// Any packed bytes decode to the same bits everywhere, whoever wrote them.
#include <cstring>
#include <random>
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

TEST(DecodeParity, EveryBackendRestoresTheSameBits) {
  std::vector<HostKvSpec> specs = support::ParitySpecs();
  for (const int64_t head_dim : {40, 48, 88, 96, 112, 160, 192, 384, 1000}) {
    HostKvSpec spec;
    spec.dtype = DType::kF16;
    spec.tokens = 5;
    spec.head_dim = head_dim;
    specs.push_back(spec);
  }
  std::mt19937_64 random(61);
  for (const HostKvSpec& spec : specs) {
    const HostKv shape(spec, 3);
    const KeepList keep = support::KeepEvery(shape.refs(), 0, 1);
    const RopeLayout layout =
        spec.head_dim % 16 == 0 ? RopeLayout::kHalf : RopeLayout::kInterleaved;
    const RotationTable rotation =
        support::RotationOf(layout, static_cast<int32_t>(spec.head_dim / 2 - 1), spec.tokens);
    std::vector<Float16> mean(spec.layers * spec.kv_heads * spec.head_dim);
    for (Float16& x : mean) x.bits = static_cast<uint16_t>(random());
    for (const CodecSpec codec : {CodecSpec{CodecId::kRaw16, 0},
                                  {CodecId::kI8t, 0},
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
                                  {CodecId::kSfv3, kFlagHadamard | kFlagRopeMean}}) {
      SCOPED_TRACE(absl::StrCat(support::Describe(spec), " codec ", static_cast<int>(codec.id),
                                " flags ", codec.flags));
      const support::PackedCase plan = support::PlanRows(shape.refs(), keep, codec);
      std::vector<std::byte> packed(plan.bytes);
      for (std::byte& byte : packed) byte = static_cast<std::byte>(random());
      std::vector<std::byte> want;
      support::ForEachBackend([&](Backend& backend) {
        HostKv out(spec, 3);
        DecodeArgs args;
        args.packed = packed;
        args.table = plan.table;
        args.mean_key = DenseView(static_cast<const Float16*>(mean.data()), spec.layers,
                                  spec.kv_heads, spec.head_dim);
        args.rotation = &rotation;
        args.rows = out.refs();
        ASSERT_TRUE(backend.Decode(args).ok());
        if (want.empty()) want.assign(out.memory().begin(), out.memory().end());
        EXPECT_EQ(std::memcmp(want.data(), out.memory().data(), want.size()), 0);
      });
    }
  }
}

}  // namespace
}  // namespace kvern
