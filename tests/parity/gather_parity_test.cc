// Moves leave the same memory everywhere, padding and neighbours included.
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"
#include "tests/support/packed_case.h"

namespace kvern {
namespace {

using support::HostKv;
using support::HostKvSpec;

// Odd numbers where they could tell processors apart.
HostKv SourceOf(const HostKvSpec& spec) {
  HostKv kv = support::RandomKv(spec, 71);
  const float odd[] = {std::numeric_limits<float>::quiet_NaN(),
                       -std::numeric_limits<float>::infinity(), 65504.0f, 1e-41f, -0.0f};
  for (int64_t token = 0; token < kv.Length(0); token += 3) {
    kv.Set(0, 0, token, (token * 5) % spec.head_dim, odd[token % 5]);
  }
  return kv;
}

void ExpectSameMemory(const HostKvSpec& spec,
                      absl::FunctionRef<absl::Status(Backend&, HostKv&)> move) {
  std::vector<std::byte> want;
  support::ForEachBackend([&](Backend& backend) {
    HostKv out = SourceOf(spec);
    ASSERT_TRUE(move(backend, out).ok());
    if (want.empty()) want.assign(out.memory().begin(), out.memory().end());
    EXPECT_EQ(std::memcmp(want.data(), out.memory().data(), want.size()), 0);
  });
}

TEST(GatherParity, EveryBackendMovesTheSameBytesInPlace) {
  for (const HostKvSpec& spec : support::ParitySpecs()) {
    SCOPED_TRACE(support::Describe(spec));
    ExpectSameMemory(spec, [](Backend& backend, HostKv& kv) {
      const KeepList keep = support::KeepEvery(kv.refs(), 1, 2);
      GatherArgs args;
      args.in = kv.refs();
      args.out = kv.refs();
      args.keep = &keep;
      args.first_slot = 1;
      args.in_place = true;
      return backend.Gather(args);
    });
  }
}

TEST(GatherParity, EveryBackendTurnsKeysToTheSameBits) {
  for (const HostKvSpec& spec : support::ParitySpecs()) {
    SCOPED_TRACE(support::Describe(spec));
    for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
      for (const int32_t bands : {static_cast<int32_t>(spec.head_dim / 2), 3}) {
        const RotationTable table = support::RotationOf(layout, bands, spec.tokens);
        const HostKv source = SourceOf(spec);
        ExpectSameMemory(spec, [&](Backend& backend, HostKv& kv) {
          const KeepList keep = support::KeepEvery(kv.refs(), 0, 3);
          GatherArgs args;
          args.in = source.refs();
          args.out = kv.refs();
          args.keep = &keep;
          args.from = &table;
          args.to = &table;
          return backend.Gather(args);
        });
      }
    }
  }
}

TEST(GatherParity, NoBackendTouchesAByteOfACancelledPassInPlace) {
  HostKvSpec spec;
  spec.kv_heads = 2;
  spec.tokens = 600;
  const support::AlwaysCancelled stop;
  support::ForEachBackend([&](Backend& backend) {
    HostKv kv = support::RandomKv(spec, 72);
    const std::vector<std::byte> before(kv.memory().begin(), kv.memory().end());
    const KeepList keep = support::KeepEvery(kv.refs(), 1, 2);
    GatherArgs args;
    args.in = kv.refs();
    args.out = kv.refs();
    args.keep = &keep;
    args.in_place = true;
    backend.Bind(&stop);
    EXPECT_EQ(backend.Gather(args).code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(std::memcmp(before.data(), kv.memory().data(), before.size()), 0);
  });
}

}  // namespace
}  // namespace kvern
