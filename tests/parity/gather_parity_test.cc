// Moves leave the same memory everywhere, padding and neighbours included.
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/parity/parity.h"
#include "tests/support/device_kv.h"
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

// Slot s turns to row s + layer + head: no two rows of the sequence share all their angles.
RotationTable SlotsOf(const HostKvSpec& spec, const RotationTable& tokens) {
  RotationTable table = tokens;
  table.row_of_slot.clear();
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    for (int64_t head = 0; head < spec.kv_heads; ++head) {
      for (int64_t slot = 0; slot < spec.tokens; ++slot) {
        table.row_of_slot.push_back(static_cast<int32_t>((slot + layer + head) % spec.tokens));
      }
    }
  }
  table.head_stride = spec.tokens;
  table.layer_stride = spec.kv_heads * spec.tokens;
  return table;
}

// One role of one sequence with all that its arguments point to.
struct Move {
  Move(const HostKvSpec& spec, size_t number)
      : in(SourceOf(spec)),
        from(support::RotationOf(
            number % 2 == 0 ? RopeLayout::kHalf : RopeLayout::kInterleaved,
            static_cast<int32_t>(spec.head_dim / 2) - static_cast<int32_t>(number % 3),
            spec.tokens)),
        to(SlotsOf(spec, from)),
        first_slot(static_cast<int64_t>(number * 3 % 7)) {
    HostKvSpec elsewhere = spec;
    elsewhere.block_tokens = 11;
    out = std::make_unique<HostKv>(elsewhere, 9);
    // Every row stays; every other goes; all move on by less than a block of threads takes at once.
    const int64_t firsts[] = {0, 1, 3}, steps[] = {1, 2, 1};
    keep = support::KeepEvery(in.refs(), firsts[number % 3], steps[number % 3]);
    turns = number % 4 != 3;
  }
  GatherArgs Args() const {
    GatherArgs args;
    args.keep = &keep;
    args.first_slot = first_slot;
    if (turns) args.from = &from;
    if (turns) args.to = &to;
    return args;
  }

  HostKv in;
  std::unique_ptr<HostKv> out;
  RotationTable from, to;
  KeepList keep;
  int64_t first_slot;
  bool turns = false;
};

std::vector<std::byte> MemoryOf(Backend& backend, const support::DeviceKv& kv, int64_t bytes) {
  std::vector<std::byte> memory(bytes);
  EXPECT_TRUE(backend.CopyOut(kv.refs()[0].base, memory).ok());
  return memory;
}

// What the memory of every target holds after `moves`, by one call or one each.
std::vector<std::vector<std::byte>> MoveAll(Backend& backend, std::deque<Move>& moves,
                                            bool in_place, bool together) {
  std::deque<support::DeviceKv> in, out;
  std::vector<GatherArgs> args;
  for (Move& move : moves) {
    in.emplace_back(backend, move.in);
    if (!in_place) out.emplace_back(backend, *move.out);
    args.push_back(move.Args());
    args.back().in = in.back().refs();
    args.back().out = (in_place ? in : out).back().refs();
    args.back().in_place = in_place;
  }
  if (together) {
    EXPECT_TRUE(backend.Gather(args).ok());
  } else {
    for (const GatherArgs& one : args) EXPECT_TRUE(backend.Gather(one).ok());
  }
  std::vector<std::vector<std::byte>> memory;
  for (size_t i = 0; i < moves.size(); ++i) {
    HostKv& host = in_place ? moves[i].in : *moves[i].out;
    memory.push_back(MemoryOf(backend, (in_place ? in : out)[i], std::ssize(host.memory())));
  }
  return memory;
}

// Rows in host memory reach a device as dense copies: these lie where it reads them, by blocks and
// strides, and a pass in place overwrites what it reads.
TEST(GatherParity, MovesTogetherInMemoryOfTheBackendAreEachOfThemAlone) {
  using enum support::TileLayout;
  const HostKvSpec kinds[] = {
      {.dtype = DType::kBF16, .kv_heads = 2, .head_dim = 24, .layout = kHeadMajor},
      {.dtype = DType::kF16, .kv_heads = 2, .head_dim = 24, .layout = kColumns},
      {.dtype = DType::kF32, .kv_heads = 2, .head_dim = 40, .layout = kTokenMajor},
      {.dtype = DType::kBF16, .kv_heads = 2, .head_dim = 264, .layout = kHeadMajor},
      {.dtype = DType::kF32, .kv_heads = 2, .head_dim = 8, .layout = kColumns},
  };
  for (HostKvSpec spec : kinds) {
    std::deque<Move> moves;
    for (const int32_t tokens : {257, 1, 40, 530, 16, 256, 33}) {
      spec.tokens = tokens;
      spec.layers = 1 + static_cast<int64_t>(moves.size() % 2);
      spec.block_tokens = moves.size() % 2 == 0 ? 16 : 7;
      spec.order = support::BlockOrder::kShuffled;
      spec.lengths = {tokens, tokens / 2};
      moves.emplace_back(spec, moves.size());
    }
    for (const bool in_place : {false, true}) {
      SCOPED_TRACE(absl::StrCat(support::Describe(spec), in_place ? " in place" : ""));
      std::vector<std::vector<std::byte>> want;
      support::ForEachBackend([&](Backend& backend) {
        const auto got = MoveAll(backend, moves, in_place, /*together=*/!want.empty());
        if (want.empty()) want = got;
        for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(got[i] == want[i]) << "move " << i;
      });
    }
  }
}

// Whole lines of more bytes than a core's cache holds, which may be written past it; the first
// tokens stay where they are.
TEST(GatherParity, ManyRowsMoveToTheSameBytes) {
  HostKvSpec spec;
  spec.kv_heads = 5;
  spec.tokens = 4400;
  spec.head_dim = 128;
  spec.order = support::BlockOrder::kShuffled;
  const std::vector<int32_t> counts = {4399, 1, 4000, 4200, 4399};
  KeepList keep = KeepList::WithCounts(DenseView(counts.data(), int64_t{1}, spec.kv_heads));
  for (int64_t head = 0; head < spec.kv_heads; ++head) {
    for (int64_t slot = 0; slot < keep.Count(0, head); ++slot) {
      const auto left_out = static_cast<int32_t>(std::min<int64_t>(slot / 17, 4400 - counts[head]));
      keep.Row(0, head)[slot] = static_cast<int32_t>(slot) + left_out;
    }
  }
  HostKv host = support::RandomKv(spec, 73);
  for (const bool in_place : {false, true}) {
    std::vector<std::byte> want;
    support::ForEachBackend([&](Backend& backend) {
      const support::DeviceKv in(backend, host), other(backend, host);
      const support::DeviceKv& out = in_place ? in : other;
      GatherArgs args;
      args.in = in.refs();
      args.out = out.refs();
      args.keep = &keep;
      args.in_place = in_place;
      ASSERT_TRUE(backend.Gather(args).ok());
      const auto got = MemoryOf(backend, out, std::ssize(host.memory()));
      if (want.empty()) want = got;
      EXPECT_TRUE(got == want) << (in_place ? "in place" : "copied");
    });
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
