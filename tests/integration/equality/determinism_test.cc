// Contract rule 2: the same request has the same answer, byte for byte, on every backend, thread
// count and instruction set, from any memory, in blocks of any size and order (rulings 6 and 24).
//
// KVERN_CASES sets the number of cases, 10000 by default (1000 where cuda is emulated).
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "tests/integration/equality/engine_side.h"
#include "tests/integration/equality/wire_side.h"

namespace kvern::equality {
namespace {

using pipeline::Placement;
using pipeline::Source;

constexpr int64_t kShards = 8;  // so that ctest can run them beside each other
constexpr int64_t kGeometries = 96;
constexpr int64_t kGrpcEvery = 50;  // 2 % of the cases

// The twin whose cuda backend is emulated: it has cuda in two of three draws, and fewer cases.
bool HasCuda() { return BackendNames().back() == "cuda"; }

int64_t NumCases() {
  const char* text = std::getenv("KVERN_CASES");
  return text != nullptr ? std::atoll(text) : HasCuda() ? 1000 : 10'000;
}

Placement PlacementOf(support::Rng* rng, const support::RandomCase& random, Source source) {
  // Codes have no place in a pool, and indices alone have no codes.
  if (!random.Packs() && rng->Chance(15)) return Placement::kIndicesOnly;
  if (source == Source::kInline) return Placement::kReturn;
  if (source == Source::kStored || random.Packs()) return Placement::kToStore;
  return rng->Pick(
      {Placement::kCopyTo, Placement::kCopyTo, Placement::kCompact, Placement::kToStore});
}

Draw RandomDraw(support::Rng* rng, const support::RandomCase& random, bool over_grpc) {
  Draw draw;
  draw.over_grpc = over_grpc;
  if (HasCuda() && !rng->Chance(33)) {
    draw.backend = "cuda";
  } else if (!rng->Chance(30)) {
    draw.backend = "cpu";
    draw.threads = static_cast<int>(rng->Int(1, 2));
    const std::vector<std::string> sets = InstructionSets();
    draw.instruction_set = sets[rng->Int(0, std::ssize(sets) - 1)];
  }
  draw.source = rng->Pick({Source::kPaged, Source::kStored, Source::kInline});
  if (!random.lengths.empty()) {
    // Messages have one length for all rows, and uploads too.
    draw.source = over_grpc ? Source::kPaged : rng->Pick({Source::kPaged, Source::kStored});
  }
  draw.placement = PlacementOf(rng, random, draw.source);
  draw.block_tokens = rng->Pick({1, 16, 64});
  draw.layout = rng->Pick({support::TileLayout::kHeadMajor, support::TileLayout::kTokenMajor,
                           support::TileLayout::kColumns});
  draw.shuffled = rng->Chance(50);
  draw.store_holds_positions = rng->Chance(50);
  draw.seed = static_cast<uint64_t>(rng->Int(0, 1 << 30));
  return draw;
}

// Everything that serves cases, made when first needed.
class Servers {
 public:
  Answer Run(const support::RandomCase& random, const Draw& draw) {
    return draw.over_grpc ? Run(&wires_, random, draw) : Run(&engines_, random, draw);
  }

 private:
  static auto Make(const Draw& draw, std::unique_ptr<EngineSide>*) {
    return EngineSide::Make(draw.backend, draw.threads);
  }
  static auto Make(const Draw& draw, std::unique_ptr<WireSide>*) { return WireSide::Make(draw); }

  template <class Side>
  static Answer Run(std::map<std::string, std::unique_ptr<Side>>* sides,
                    const support::RandomCase& random, const Draw& draw) {
    // A server's instruction set is its own; engines of this process change theirs.
    const std::string name = absl::StrCat(draw.backend, " ", draw.threads, " ",
                                          draw.over_grpc ? draw.instruction_set : "");
    std::unique_ptr<Side>& side = (*sides)[name];
    if (side == nullptr) {
      auto made = Make(draw, &side);
      if (!made.ok()) return Failure(made.status());
      side = *std::move(made);
    }
    return side->Run(random, draw);
  }

  std::map<std::string, std::unique_ptr<EngineSide>> engines_;
  std::map<std::string, std::unique_ptr<WireSide>> wires_;
};

bool HasBytes(const Answer& answer) {
  return answer.fields.contains("k") || answer.fields.contains("blocks");
}

// What a run of cases was made of, so that a test of refusals only is seen.
struct Tally {
  int64_t cases = 0, applied = 0, refused = 0, with_bytes = 0;
  std::map<std::string, std::string> reasons;  // with the first request that was refused for it

  void Add(const support::RandomCase& random, const Answer& first, const Answer& second) {
    ++cases;
    applied += first.applied ? 1 : 0;
    with_bytes += HasBytes(first) && HasBytes(second) ? 1 : 0;
    if (!first.failed) return;
    ++refused;
    reasons.emplace(first.fields.at("status"), support::Describe(random));
  }
};

class Determinism : public testing::TestWithParam<int64_t> {};

TEST_P(Determinism, SameRequestGivesSameBytesHoweverItIsServed) {
  Servers servers;
  Tally tally;
  for (int64_t number = GetParam(); number < NumCases(); number += kShards) {
    const support::RandomCase random =
        support::MakeRandomCase(number % kGeometries, static_cast<uint64_t>(number));
    support::Rng rng(static_cast<uint64_t>(number) + (uint64_t{1} << 32));
    const Draw one = RandomDraw(&rng, random, number % kGrpcEvery == kGrpcEvery - 1);
    const Draw other = RandomDraw(&rng, random, false);
    const Answer first = servers.Run(random, one);
    const Answer second = servers.Run(random, other);
    ASSERT_EQ(Difference(first, second), "")
        << "case " << number << ": " << support::Describe(random) << "\n  " << Describe(one)
        << "\n  " << Describe(other);
    tally.Add(random, first, second);
  }
  for (const auto& [reason, example] : tally.reasons) {
    RecordProperty(absl::StrCat("refused ", reason), example);
  }
  RecordProperty("refused", absl::StrCat(tally.refused));
  if (tally.cases < 100) return;
  EXPECT_LE(tally.refused * 10, tally.cases);
  EXPECT_GE(tally.applied * 10, tally.cases * 6);
  EXPECT_GE(tally.with_bytes * 10, tally.cases * 5);
}

INSTANTIATE_TEST_SUITE_P(Shards, Determinism, testing::Range<int64_t>(0, kShards));

// The comparison above must be able to fail: one bit of one element of every value row.
TEST(Comparison, SeesOneBitOfTheInput) {
  Servers servers;
  Draw draw;
  int64_t seen = 0;
  for (int64_t number = 0; number < 200; ++number) {
    support::RandomCase random =
        support::MakeRandomCase(number % kGeometries, static_cast<uint64_t>(number));
    // Codes round a bit away, and rows that go have no bytes.
    if (random.Packs() || !random.lengths.empty()) continue;
    const Answer before = servers.Run(random, draw);
    if (before.failed || before.fields.at("k").empty()) continue;
    for (size_t at = 0; at < random.v.size(); at += random.RowBytes()) random.v[at] ^= std::byte{1};
    EXPECT_NE(Difference(before, servers.Run(random, draw)), "") << "case " << number;
    ++seen;
  }
  EXPECT_GE(seen, 50);
}

}  // namespace
}  // namespace kvern::equality
