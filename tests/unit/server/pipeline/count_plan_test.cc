#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "server/pipeline/plan.h"
#include "server/pipeline/protection.h"
#include "tests/unit/server/pipeline/toy_sequence.h"

namespace kvern::pipeline {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ResolvedPolicy MakePolicy(std::optional<Budget> budget, const char* budgeter = "uniform") {
  ResolvedPolicy policy;
  policy.budget = budget;
  policy.budgeter_spec = *ParseStageSpec(budgeter);
  policy.budgeter = *MakeBudgeter(policy.budgeter_spec);
  return policy;
}

void SetCodecs(const char* k, const char* v, ResolvedPolicy* policy) {
  policy->codecs = {*ParseCodec(k, Role::kKey), *ParseCodec(v, Role::kValue)};
}

CountPlan Plan(ToySequence& sequence, const ResolvedPolicy& policy) {
  auto plan = PlanCounts(sequence.input(), policy);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

class TailScorer : public Scorer {
 public:
  uint16_t Inputs() const override { return kNeedsNothing; }
  int64_t ProtectedTail() const override { return 16; }
  absl::Status Score(Backend&, std::span<const ScoreInput>) const override {
    return absl::OkStatus();
  }
};

TEST(PlanCounts, GivesEveryRowItsTokens) {
  ToySequence sequence({.layers = 3, .kv_heads = 2, .tokens = 256});
  const CountPlan plan = Plan(sequence, MakePolicy(TokenBudget{100}));
  EXPECT_EQ(plan.counts.size(), 6u);
  EXPECT_THAT(plan.counts, Each(100));
  EXPECT_THAT(plan.recent, Each(50));
  EXPECT_FALSE(plan.budget_grew);
  EXPECT_FALSE(plan.EverythingStays(sequence.input()));
}

TEST(PlanCounts, FloorsRatiosAsTheyWereWritten) {
  const struct {
    int64_t tokens;
    double ratio;
    int32_t kept;
  } rows[] = {{1000, 0.1, 100},  {30, 0.1, 3}, {1000, 0.3, 300}, {4096, 0.25, 1024},
              {4097, 0.5, 2048}, {7, 0.5, 3},  {10, 0.29, 2},    {100, 1.0, 100}};
  for (const auto& row : rows) {
    ToySequence sequence({.layers = 2, .tokens = row.tokens});
    ResolvedPolicy policy = MakePolicy(KeepRatioBudget{row.ratio});
    policy.sink_tokens = 0;
    EXPECT_THAT(Plan(sequence, policy).counts, Each(row.kept)) << row.tokens << " " << row.ratio;
  }
}

TEST(PlanCounts, IsTheIdentityWhenTheBudgetHoldsEverything) {
  ToySequence sequence({.tokens = 40});
  for (const int64_t tokens : {int64_t{40}, int64_t{41}, std::numeric_limits<int64_t>::max()}) {
    EXPECT_TRUE(Plan(sequence, MakePolicy(TokenBudget{tokens})).EverythingStays(sequence.input()));
  }
  EXPECT_TRUE(Plan(sequence, MakePolicy(std::nullopt)).EverythingStays(sequence.input()));
}

TEST(PlanCounts, KeepsTheSinksAndSaysSoAtBudgetZero) {
  ToySequence sequence({.tokens = 256});
  const CountPlan plan = Plan(sequence, MakePolicy(TokenBudget{0}));
  EXPECT_THAT(plan.counts, Each(4));
  EXPECT_THAT(plan.recent, Each(0));
  EXPECT_TRUE(plan.budget_grew);
  EXPECT_THAT(plan.warnings, ElementsAre(HasSubstr("4 sinks")));
}

TEST(PlanCounts, IsEmptyForEmptySequences) {
  ToySequence sequence({.tokens = 0});
  for (const Budget& budget :
       {Budget(TokenBudget{0}), Budget(KeepRatioBudget{0.5}), Budget(ByteBudget{0})}) {
    ResolvedPolicy policy = MakePolicy(budget);
    SetCodecs("lm4+rm", "lm4", &policy);
    const CountPlan plan = Plan(sequence, policy);
    EXPECT_THAT(plan.counts, Each(0));
    EXPECT_TRUE(plan.EverythingStays(sequence.input()));
    EXPECT_EQ(PackedBytes(sequence.input(), policy, plan.counts), 0);
  }
}

TEST(PlanCounts, ShrinksTheRecentTokensBeforeTheBudgetGrows) {
  ToySequence sequence({.tokens = 256});
  const CountPlan plan = Plan(sequence, MakePolicy(TokenBudget{20}));
  EXPECT_THAT(plan.counts, Each(20));
  EXPECT_THAT(plan.recent, Each(16));  // 20 less 4 sinks, not 32
  EXPECT_FALSE(plan.budget_grew);
}

TEST(PlanCounts, CountsProtectedRangesOnce) {
  ToySequence sequence({.tokens = 256});
  sequence.input().protected_ranges = {{2, 10},   {8, 12}, {250, 256},
                                       {100, 50}, {-5, 1}, {255, 900}};
  const CountPlan plan = Plan(sequence, MakePolicy(TokenBudget{5}));
  EXPECT_THAT(plan.counts, Each(12 + 6));
  EXPECT_TRUE(plan.budget_grew);
}

TEST(PlanCounts, ProtectsTheReadOnlyPrefixAndTheTailThatAScorerCannotJudge) {
  ToySequence sequence({.tokens = 256});
  sequence.input().readonly_prefix_tokens = 64;
  ResolvedPolicy policy = MakePolicy(TokenBudget{10});
  policy.scorers.push_back(std::make_unique<TailScorer>());
  EXPECT_THAT(Plan(sequence, policy).counts, Each(64 + 16));
}

TEST(PlanCounts, RefusesWhenProtectionExceedsTheBudgetUnderFail) {
  ToySequence sequence({.tokens = 256});
  sequence.input().protected_ranges = {{0, 50}};
  ResolvedPolicy policy = MakePolicy(TokenBudget{49});
  policy.on_conflict = OnConflict::kFail;
  const auto plan = PlanCounts(sequence.input(), policy);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReasonOf(plan.status()), "BUDGET_BELOW_PROTECTED");
  policy.budget.emplace(TokenBudget{50});
  EXPECT_TRUE(PlanCounts(sequence.input(), policy).ok());
}

TEST(PlanCounts, TrimsTheOldestButNeverTheSinksOrThePrefix) {
  ToySequence sequence({.tokens = 256});
  sequence.input().protected_ranges = {{100, 200}};
  ResolvedPolicy policy = MakePolicy(TokenBudget{50});
  policy.on_conflict = OnConflict::kTrimOldest;
  const CountPlan plan = Plan(sequence, policy);
  EXPECT_THAT(plan.counts, Each(50));
  EXPECT_FALSE(plan.budget_grew);
  EXPECT_THAT(plan.warnings, ElementsAre(HasSubstr("TRIM_OLDEST")));
  sequence.input().readonly_prefix_tokens = 60;
  const CountPlan pinned = Plan(sequence, policy);
  EXPECT_THAT(pinned.counts, Each(60));
  EXPECT_TRUE(pinned.budget_grew);
}

TEST(PlanCounts, NeverKeepsMoreThanAHeadHas) {
  ToySequence sequence({.layers = 2, .kv_heads = 2, .tokens = 200});
  sequence.SetLengths({200, 50, 120, 3});
  EXPECT_THAT(Plan(sequence, MakePolicy(TokenBudget{100})).counts, ElementsAre(100, 50, 100, 3));
  EXPECT_THAT(Plan(sequence, MakePolicy(KeepRatioBudget{0.5})).counts,
              ElementsAre(100, 25, 60, 3));  // 3 tokens are all sinks
  EXPECT_THAT(Plan(sequence, MakePolicy(std::nullopt)).counts, ElementsAre(200, 50, 120, 3));
}

TEST(PlanCounts, ProtectsEachHeadByItsOwnLengthWhateverStandsBetween) {
  ToySequence sequence({.layers = 2, .kv_heads = 2, .tokens = 200});
  sequence.SetLengths({200, 50, 50, 200});
  sequence.input().protected_ranges = {{10, 30}, {40, 60}, {100, 120}};
  ResolvedPolicy policy = MakePolicy(TokenBudget{0});
  policy.sink_tokens = 4;
  policy.on_conflict = OnConflict::kGrowBudget;
  EXPECT_THAT(Plan(sequence, policy).counts, ElementsAre(64, 34, 34, 64));
}

TEST(PlanCounts, SumsToTheBudgetUnderSensitivity) {
  ToySequence sequence({.layers = 5, .kv_heads = 1, .tokens = 300});
  sequence.SetSensitivity({1, 3, 90, 4, 7});
  for (const int64_t tokens : {40, 100, 211, 299}) {
    const auto counts = Plan(sequence, MakePolicy(TokenBudget{tokens}, "sensitivity")).counts;
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), 5 * tokens);
  }
  const auto counts = Plan(sequence, MakePolicy(KeepRatioBudget{0.5}, "sensitivity")).counts;
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), 5 * 150);
}

// The figures of quantization.md 4.1 and the rows' 64 bytes, added by hand.
TEST(PackedBytes, CountsBlocksRowsAndTheMeanKey) {
  ToySequence sequence({.layers = 1, .kv_heads = 1, .tokens = 256, .head_dim = 64});
  ResolvedPolicy policy = MakePolicy(std::nullopt);
  EXPECT_EQ(BytesBefore(sequence.input()), 256 * 256);
  EXPECT_EQ(PackedBytes(sequence.input(), policy, {100}), 100 * 256);
  SetCodecs("lm4+rm", "lm4", &policy);
  // 4 raw sinks of 512 B, 64 coded tokens of 2176 B, and 2 of 64 + 16 B, each 128-aligned.
  const int64_t role = (512 + 64) + (2176 + 64) + (128 + 64);
  EXPECT_EQ(PackedBytes(sequence.input(), policy, {70}), 2 * role + 128);
  SetCodecs("i8t+rm", "i8t", &policy);
  EXPECT_EQ(PackedBytes(sequence.input(), policy, {64}), 2 * (4224 + 64) + 128);
}

TEST(PlanPackedTable, AgreesWithPackedBytesAndCoversEverySlotOnce) {
  std::mt19937 random(5);
  const char* codecs[][2] = {{"lm4+rm", "lm4"},   {"i8t+rm", "lm4"},   {"i8t", "i8t"},
                             {"raw16", "lm4"},    {"lm4+rm", "raw16"}, {"kch4", "sfv2"},
                             {"sfv3+rm", "sfv3"}, {"i4t+rm", "i4t"},   {"fp8t", "fp8t"}};
  for (int round = 0; round < 200; ++round) {
    ToySequence sequence({.layers = 3,
                          .kv_heads = 2,
                          .tokens = 400,
                          .dtype = round % 2 == 0 ? DType::kBF16 : DType::kF32});
    ResolvedPolicy policy = MakePolicy(std::nullopt);
    SetCodecs(codecs[round % 9][0], codecs[round % 9][1], &policy);
    policy.sink_tokens = random() % 80;
    std::vector<int32_t> counts(6);
    for (int32_t& count : counts) count = static_cast<int32_t>(random() % 401);
    int64_t total = 0;
    const auto table = PlanPackedTable(sequence.input(), policy, counts, &total);
    int64_t slots = 0, offset = 0;
    for (const PackedRow& row : table) {
      ASSERT_GE(row.byte_offset, offset);
      ASSERT_EQ(row.byte_offset % kPackedBlockAlign, 0);
      const DType dtype = sequence.input().keys[0].dtype;
      offset = row.byte_offset + BlockBytes(static_cast<CodecId>(row.codec), dtype, row.tokens, 64);
      slots += row.tokens;
    }
    EXPECT_LE(offset, total);
    EXPECT_EQ(slots, 2 * std::accumulate(counts.begin(), counts.end(), int64_t{0}));
    const int64_t mean = (policy.codecs.k.flags & kFlagRopeMean) != 0 ? 6 * 64 * 2 : 0;
    EXPECT_EQ(PackedBytes(sequence.input(), policy, counts),
              total + static_cast<int64_t>(table.size() * sizeof(PackedRow)) + mean);
  }
}

TEST(PlanPackedTable, KeepsSinksRawInBothRolesAndKeysFirst) {
  ToySequence sequence({.layers = 1, .kv_heads = 1, .tokens = 100});
  ResolvedPolicy policy = MakePolicy(std::nullopt);
  SetCodecs("i8t+rm", "lm4", &policy);
  int64_t total = 0;
  const auto table = PlanPackedTable(sequence.input(), policy, {80}, &total);
  ASSERT_EQ(table.size(), 6u);
  const int64_t want[6][4] = {{0, 0, 0, 4}, {0, 1, 4, 64}, {0, 1, 68, 12},
                              {1, 0, 0, 4}, {1, 5, 4, 64}, {1, 5, 68, 12}};
  for (size_t row = 0; row < 6; ++row) {
    EXPECT_THAT((std::vector<int64_t>{table[row].role, table[row].codec, table[row].first_slot,
                                      table[row].tokens}),
                ::testing::ElementsAreArray(want[row]));
  }
  EXPECT_EQ(table[1].flags, kFlagRopeMean);
  EXPECT_EQ(table[0].flags, 0);
}

TEST(PlanCounts, FillsAByteBudgetAndNeverExceedsIt) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    const int64_t tokens = 64 + static_cast<int64_t>(random() % 900);
    ToySequence sequence({.layers = 4, .kv_heads = 2, .tokens = tokens});
    sequence.SetSensitivity({1, 20, 3, 7});
    const bool uniform = round % 2 == 0;
    ResolvedPolicy policy = MakePolicy(std::nullopt, uniform ? "uniform" : "sensitivity");
    SetCodecs(round % 3 == 0 ? "raw16" : "i8t+rm", round % 3 == 0 ? "raw16" : "lm4", &policy);
    const int64_t before = BytesBefore(sequence.input());
    const int64_t bytes = before / 5 + static_cast<int64_t>(random()) % (before / 5);
    policy.budget.emplace(ByteBudget{bytes});
    CountPlan plan = Plan(sequence, policy);
    ASSERT_LE(PackedBytes(sequence.input(), policy, plan.counts), bytes);
    ASSERT_FALSE(plan.budget_grew);
    if (!uniform) continue;
    EXPECT_THAT(plan.counts, Each(plan.counts[0]));
    for (int32_t& count : plan.counts) ++count;
    ASSERT_GT(PackedBytes(sequence.input(), policy, plan.counts), bytes);
  }
}

TEST(PlanCounts, KeepsEverythingWhenItsCodesFitTheBytes) {
  ToySequence sequence({.tokens = 512});
  ResolvedPolicy policy = MakePolicy(std::nullopt);
  SetCodecs("lm4+rm", "lm4", &policy);
  policy.byte_share = 0.35;
  EXPECT_TRUE(Plan(sequence, policy).EverythingStays(sequence.input()));
}

TEST(PlanCounts, RefusesBytesBelowTheProtectedOnes) {
  ToySequence sequence({.tokens = 512});
  sequence.input().protected_ranges = {{0, 256}};
  ResolvedPolicy policy = MakePolicy(ByteBudget{4 * 256 * 256});
  EXPECT_THAT(Plan(sequence, policy).counts, Each(256));
  policy.budget.emplace(ByteBudget{4 * 256 * 256 - 1});
  for (const OnConflict rule :
       {OnConflict::kGrowBudget, OnConflict::kFail, OnConflict::kTrimOldest}) {
    policy.on_conflict = rule;
    const auto plan = PlanCounts(sequence.input(), policy);
    EXPECT_EQ(ReasonOf(plan.status()), "BUDGET_BELOW_PROTECTED");
    EXPECT_EQ(FieldOf(plan.status()), "policy.budget.bytes");
  }
}

TEST(PlanCounts, HoldsMoreTokensInMoreBytes) {
  ToySequence sequence({.layers = 4, .kv_heads = 2, .tokens = 700});
  ResolvedPolicy policy = MakePolicy(std::nullopt);
  SetCodecs("lm4+rm", "lm4", &policy);
  int32_t last = 0;
  for (int64_t bytes = 40000; bytes < 400000; bytes += 777) {
    policy.budget.emplace(ByteBudget{bytes});
    const int32_t count = Plan(sequence, policy).counts[0];
    ASSERT_GE(count, last);
    last = count;
  }
  EXPECT_GT(last, 600);
}

std::vector<bool> Marked(const TokenSpans& spans, int64_t length) {
  std::vector<bool> marked(static_cast<size_t>(length));
  for (const TokenSpan& span : spans) {
    for (int64_t token = span.begin; token < span.end; ++token) {
      marked[static_cast<size_t>(token)] = true;
    }
  }
  return marked;
}

TEST(Protection, RecentTokensFitBesideTheHardOnesExactly) {
  std::mt19937 random(17);
  for (int round = 0; round < 3000; ++round) {
    const int64_t length = 1 + static_cast<int64_t>(random() % 60);
    ToySequence sequence({.layers = 1, .kv_heads = 1, .tokens = length});
    for (size_t range = random() % 4; range > 0; --range) {
      const int64_t begin = random() % 60;
      sequence.input().protected_ranges.push_back({begin, begin + random() % 12});
    }
    ResolvedPolicy policy = MakePolicy(std::nullopt);
    policy.sink_tokens = random() % 6;
    const TokenSpans hard = HardProtected(sequence.input(), policy, length);
    const int64_t count = random() % (length + 1), wanted = random() % 70;
    const auto marked = Marked(hard, length);
    int64_t left = count - CountTokens(hard), want = 0;
    for (int64_t token = length - 1; token >= 0 && want < wanted; --token, ++want) {
      left -= marked[static_cast<size_t>(token)] ? 0 : 1;
      if (left < 0 && !marked[static_cast<size_t>(token)]) break;
    }
    ASSERT_EQ(RecentThatFit(hard, length, count, wanted), want) << "round " << round;
  }
}

TEST(Protection, TrimsFromTheOldEnd) {
  const TokenSpans trimmed = TrimOldest({{0, 6}, {10, 20}, {30, 40}}, 4, 9);
  const auto marked = Marked(trimmed, 40);
  EXPECT_EQ(CountTokens(trimmed), 9);
  EXPECT_TRUE(marked[3]);
  EXPECT_FALSE(marked[4]);
  EXPECT_FALSE(marked[34]);
  EXPECT_TRUE(marked[35]);
  EXPECT_EQ(CountTokens(TrimOldest({{0, 6}, {10, 20}}, 4, 0)), 4);
  EXPECT_THAT(TrimOldest({}, 4, 0), IsEmpty());
}

}  // namespace
}  // namespace kvern::pipeline
