// Rows arrive bit for bit, re-rotated rows at their new angle, and nothing else is written.
#include "kernels/ref/gather.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/base/band_rotation.h"
#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"
#include "tests/support/packed_case.h"

namespace kvern {
namespace {

using support::BlockOrder;
using support::HostKv;
using support::HostKvSpec;
using support::KeepEvery;
using support::RandomKv;
using support::TileLayout;

const HostKvSpec kSource = {DType::kBF16,          2, 2, 50, 24, 16, TileLayout::kHeadMajor,
                            BlockOrder::kShuffled, {}};

GatherArgs ArgsOf(const HostKv& in, const HostKv& out, const KeepList& keep) {
  GatherArgs args;
  args.in = in.refs();
  args.out = out.refs();
  args.keep = &keep;
  return args;
}

void ExpectKept(const HostKv& source, const KeepList& keep, const HostKv& out) {
  for (int64_t layer = 0; layer < keep.layers; ++layer) {
    for (int64_t head = 0; head < keep.kv_heads; ++head) {
      for (int64_t slot = 0; slot < keep.Count(layer, head); ++slot) {
        for (int64_t d = 0; d < source.spec().head_dim; ++d) {
          ASSERT_EQ(out.Get(layer, head, slot, d),
                    source.Get(layer, head, keep.Row(layer, head)[slot], d))
              << layer << " " << head << " " << slot << " " << d;
        }
      }
    }
  }
}

TEST(RefGather, MovesRowsBetweenLayouts) {
  const HostKv source = RandomKv(kSource, 1);
  const KeepList keep = KeepEvery(source.refs(), 1, 3);
  for (const TileLayout layout :
       {TileLayout::kHeadMajor, TileLayout::kTokenMajor, TileLayout::kColumns}) {
    HostKvSpec spec = kSource;
    spec.tokens = keep.Count(0, 0);
    spec.layout = layout;
    spec.block_tokens = 7;
    HostKv out(spec, 5);
    ASSERT_TRUE(ref::Gather(/*stop=*/nullptr, ArgsOf(source, out, keep)).ok());
    ExpectKept(source, keep, out);
  }
}

TEST(RefGather, WritesOnlyTheRowsItMovesInPlace) {
  for (const TileLayout layout :
       {TileLayout::kHeadMajor, TileLayout::kTokenMajor, TileLayout::kColumns}) {
    HostKvSpec spec = kSource;
    spec.layout = layout;
    const HostKv source = RandomKv(spec, 1);
    const KeepList keep = KeepEvery(source.refs(), 0, 2);
    HostKv moved = RandomKv(spec, 1);
    GatherArgs args = ArgsOf(moved, moved, keep);
    args.in_place = true;
    ASSERT_TRUE(ref::Gather(/*stop=*/nullptr, args).ok());
    ExpectKept(source, keep, moved);
    // Everything beyond the kept slots is as it was: the padding is NaN, so compare bytes.
    HostKv restored = RandomKv(spec, 1);
    for (int64_t layer = 0; layer < spec.layers; ++layer) {
      for (int64_t head = 0; head < spec.kv_heads; ++head) {
        for (int64_t slot = 0; slot < keep.Count(layer, head); ++slot) {
          for (int64_t d = 0; d < spec.head_dim; ++d) {
            restored.Set(layer, head, slot, d, moved.Get(layer, head, slot, d));
          }
        }
      }
    }
    EXPECT_EQ(std::memcmp(restored.memory().data(), moved.memory().data(), moved.memory().size()),
              0);
  }
}

TEST(RefGather, LeavesSlotsBelowTheFirstAlone) {
  const HostKv source = RandomKv(kSource, 1);
  const KeepList keep = KeepEvery(source.refs(), 1, 3);
  HostKv out(kSource, 5);
  GatherArgs args = ArgsOf(source, out, keep);
  args.first_slot = 4;
  ASSERT_TRUE(ref::Gather(/*stop=*/nullptr, args).ok());
  for (int64_t slot = 0; slot < 4; ++slot) EXPECT_EQ(out.Get(0, 0, slot, 0), 0.0f);
  EXPECT_EQ(out.Get(0, 0, 4, 3), source.Get(0, 0, keep.Row(0, 0)[4], 3));
}

TEST(RefGather, TurnsKeysToTheAngleOfTheirSlot) {
  for (const RopeLayout layout : {RopeLayout::kHalf, RopeLayout::kInterleaved}) {
    HostKvSpec spec = kSource;
    spec.dtype = DType::kF32;
    const RotationTable table = support::RotationOf(layout, /*bands=*/10, spec.tokens);
    const HostKv plain = RandomKv(spec, 1);
    const auto rotated = [&](int64_t token, int64_t position) {
      std::vector<float> x(spec.head_dim);
      for (int64_t d = 0; d < spec.head_dim; ++d) x[d] = plain.Get(1, 1, token, d);
      RotateRow(RowOf(table, position), x.data());
      return x;
    };
    HostKv source(spec, 2);
    for (int64_t token = 0; token < spec.tokens; ++token) {
      const std::vector<float> x = rotated(token, token);
      for (int64_t d = 0; d < spec.head_dim; ++d) source.Set(1, 1, token, d, x[d]);
    }
    const KeepList keep = KeepEvery(source.refs(), 2, 4);
    HostKv out(spec, 3);
    GatherArgs args = ArgsOf(source, out, keep);
    args.from = &table;
    args.to = &table;
    ASSERT_TRUE(ref::Gather(/*stop=*/nullptr, args).ok());
    for (int64_t slot = 0; slot < keep.Count(1, 1); ++slot) {
      const std::vector<float> want = rotated(keep.Row(1, 1)[slot], slot);
      for (int64_t d = 0; d < spec.head_dim; ++d) {
        ASSERT_NEAR(out.Get(1, 1, slot, d), want[d], 2e-6f) << slot << " " << d;
      }
    }
  }
}

TEST(RefGather, KeepsTheBitsOfKeysWhoseAngleStays) {
  const HostKv source = RandomKv(kSource, 1);
  const RotationTable table = support::RotationOf(RopeLayout::kHalf, /*bands=*/12, kSource.tokens);
  const KeepList keep = KeepEvery(source.refs(), 0, 1);
  HostKv out(kSource, 3);
  GatherArgs args = ArgsOf(source, out, keep);
  args.from = &table;
  args.to = &table;
  ASSERT_TRUE(ref::Gather(/*stop=*/nullptr, args).ok());
  ExpectKept(source, keep, out);
}

TEST(RefGather, StopsBeforeButNotInsideAPassInPlace) {
  // Ok once, then cancelled.
  class SecondCheckFails final : public StopCheck {
   public:
    absl::Status Check() const override {
      return ++asked_ > 1 ? absl::CancelledError("late") : absl::OkStatus();
    }

   private:
    mutable int asked_ = 0;
  };
  HostKv kv = RandomKv(kSource, 1);
  const KeepList keep = KeepEvery(kv.refs(), 0, 2);
  GatherArgs args = ArgsOf(kv, kv, keep);
  args.in_place = true;
  const support::AlwaysCancelled cancelled;
  EXPECT_EQ(ref::Gather(&cancelled, args).code(), absl::StatusCode::kCancelled);
  const SecondCheckFails late;
  EXPECT_TRUE(ref::Gather(&late, args).ok());
  const SecondCheckFails between;
  HostKv out(kSource, 3);
  EXPECT_EQ(ref::Gather(&between, ArgsOf(kv, out, keep)).code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace kvern
