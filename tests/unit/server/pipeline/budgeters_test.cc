#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/base/error_reason.h"
#include "server/pipeline/budgeter.h"
#include "server/pipeline/budgeters/apportion.h"
#include "tests/unit/server/pipeline/toy_sequence.h"

namespace kvern::pipeline {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

int64_t Sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

std::vector<int64_t> LayerBudgets(const char* budgeter, ToySequence& sequence, int64_t total) {
  auto made = MakeBudgeter(*ParseStageSpec(budgeter));
  EXPECT_TRUE(made.ok()) << made.status();
  auto budgets = (*made)->LayerBudgets({.input = &sequence.input(), .total_tokens = total});
  EXPECT_TRUE(budgets.ok()) << budgets.status();
  return *budgets;
}

TEST(Apportion, GivesTheLargestRemaindersTheRest) {
  EXPECT_THAT(Apportion({.5, .3, .15, .05}, 37, 100), ElementsAre(18, 11, 6, 2));
  EXPECT_THAT(Apportion({1, 1, 1}, 2, 100), ElementsAre(1, 1, 0));
}

TEST(Apportion, RedistributesWhatACapCannotTake) {
  EXPECT_THAT(Apportion({8, 1, 1}, 20, 10), ElementsAre(10, 5, 5));
  EXPECT_THAT(Apportion({1, 0, 0}, 9, 5), ElementsAre(5, 2, 2));
  EXPECT_THAT(Apportion({0, 0}, 4, 5), ElementsAre(2, 2));
  EXPECT_THAT(Apportion({1, 2}, 100, 5), ElementsAre(5, 5));
  EXPECT_THAT(Apportion({1, 2}, 0, 5), ElementsAre(0, 0));
  EXPECT_THAT(Apportion({}, 7, 5), ElementsAre());
}

TEST(Apportion, SumsExactlyAndStaysBelowTheCapOnRandomWeights) {
  std::mt19937 random(11);
  for (int round = 0; round < 2000; ++round) {
    std::vector<double> weights(1 + random() % 40);
    for (double& weight : weights) {
      weight = std::pow(10.0, static_cast<double>(random() % 30) - 15.0) * (random() % 4);
    }
    const int64_t cap = random() % 500;
    const int64_t total = random() % 8000;
    const std::vector<int64_t> shares = Apportion(weights, total, cap);
    ASSERT_EQ(Sum(shares), std::min(total, cap * static_cast<int64_t>(weights.size())));
    ASSERT_THAT(shares, Each(::testing::AllOf(::testing::Ge(0), ::testing::Le(cap))));
  }
}

TEST(MakeBudgeter, ListsTheKnownWhenANameIsUnknown) {
  const auto made = MakeBudgeter({"flat", {}});
  EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("uniform, sensitivity, pyramid"));
}

TEST(UniformBudgeter, GivesEveryLayerTheSame) {
  ToySequence sequence({.layers = 4, .tokens = 100});
  EXPECT_THAT(LayerBudgets("uniform", sequence, 4 * 30), Each(30));
  EXPECT_THAT(LayerBudgets("uniform", sequence, 122), ElementsAre(31, 31, 30, 30));
  EXPECT_THAT(LayerBudgets("uniform", sequence, 100000), Each(100));
}

TEST(SensitivityBudgeter, FollowsTheSquareRootAboveTheFloor) {
  ToySequence sequence({.layers = 3, .tokens = 1000});
  sequence.SetSensitivity({1, 4, 9});
  // 3 * (136 - 36) = 300 tokens above the floor, split 1 : 2 : 3.
  EXPECT_THAT(LayerBudgets("sensitivity", sequence, 3 * 136), ElementsAre(86, 136, 186));
  EXPECT_THAT(LayerBudgets("sensitivity:power=1,floor=0", sequence, 1400),
              ElementsAre(100, 400, 900));
}

TEST(SensitivityBudgeter, CapsAtTheTokensAndRedistributes) {
  ToySequence sequence({.layers = 3, .tokens = 200});
  sequence.SetSensitivity({1, 1, 10000});
  EXPECT_THAT(LayerBudgets("sensitivity", sequence, 3 * 100), ElementsAre(50, 50, 200));
}

TEST(SensitivityBudgeter, IsFlatBelowTheFloorAndWithoutAnySensitivity) {
  ToySequence sequence({.layers = 3, .tokens = 200});
  sequence.SetSensitivity({1, 4, 9});
  EXPECT_THAT(LayerBudgets("sensitivity", sequence, 3 * 20), Each(20));
  sequence.SetSensitivity({0, 0, 0});
  EXPECT_THAT(LayerBudgets("sensitivity", sequence, 3 * 80), Each(80));
}

TEST(SensitivityBudgeter, ReadsTheRowsOfThePresentLayers) {
  ToySequence sequence({.layers = 2, .tokens = 1000});
  sequence.SetSensitivity({0, 1, 0, 9});
  sequence.input().layer_indices = {1, 3};
  EXPECT_THAT(LayerBudgets("sensitivity:floor=0", sequence, 400), ElementsAre(100, 300));
}

TEST(SensitivityBudgeter, NamesWhatIsMissingOrWrong) {
  ToySequence sequence({.layers = 2, .tokens = 100});
  const auto made = MakeBudgeter({"sensitivity", {}});
  const BudgetRequest request = {.input = &sequence.input(), .total_tokens = 100};
  const auto missing = (*made)->LayerBudgets(request);
  EXPECT_EQ(ReasonOf(missing.status()), "INPUT_MISSING");
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("layer_sensitivity"));
  for (const float bad : {-1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    sequence.SetSensitivity({1, bad});
    EXPECT_EQ((*made)->LayerBudgets(request).status().code(), absl::StatusCode::kInvalidArgument);
  }
  sequence.SetSensitivity({1});
  EXPECT_EQ((*made)->LayerBudgets(request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(PyramidBudgeter, SumsExactlyAndDescends) {
  ToySequence sequence({.layers = 7, .tokens = 301});
  for (int64_t total = 0; total <= 7 * 301; total += 13) {
    const auto budgets = LayerBudgets("pyramid:window=32", sequence, total);
    ASSERT_EQ(Sum(budgets), total);
    ASSERT_TRUE(std::is_sorted(budgets.rbegin(), budgets.rend()));
    ASSERT_LE(budgets.front(), 301);
    ASSERT_GE(budgets.back(), std::min<int64_t>(32, total / 7));
  }
}

TEST(PyramidBudgeter, KvpressMatchesItsRowsOfPoliciesSection11) {
  ToySequence first({.layers = 32, .tokens = 4096});
  const auto half = LayerBudgets("pyramid:compat=kvpress", first, 32 * 2048);
  EXPECT_EQ(half[0], 3994);
  EXPECT_EQ(half[1], 3868);
  EXPECT_EQ(half[16], 1985);
  EXPECT_EQ(half[31], 102);
  EXPECT_EQ(Sum(half), 65536);
  EXPECT_THAT(LayerBudgets("pyramid:compat=kvpress", first, 32 * 1024), Each(1024));
}

TEST(PyramidBudgeter, KvpressMatchesThePeersOwnRows) {
  std::ifstream file(std::string(KVERN_TEST_DATA) + "/golden/pyramid-budgets.safetensors",
                     std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const auto parsed = formats::ParseSafetensors(std::as_bytes(std::span(text)));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto Ints = [&](const char* name) {
    const std::span<const std::byte> bytes = parsed->Find(name)->bytes;
    std::vector<int32_t> values(bytes.size() / 4);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  };
  const std::vector<int32_t> rows = Ints("rows"), budgets = Ints("budgets");
  constexpr size_t kRowInts = 6, kMaxLayers = 36;
  ASSERT_EQ(rows.size() / kRowInts, 14u);
  for (size_t row = 0; row < rows.size() / kRowInts; ++row) {
    const int32_t* of_row = rows.data() + row * kRowInts;
    const int64_t layers = of_row[0], tokens = of_row[1];
    ToySequence sequence({.layers = layers, .tokens = tokens});
    const std::string spec = "pyramid:compat=kvpress,window=" + std::to_string(of_row[2]) +
                             ",beta=" + std::to_string(of_row[3]);
    const int64_t total = (layers * tokens * (1000 - of_row[4]) + 500) / 1000;
    const auto got = LayerBudgets(spec.c_str(), sequence, total);
    const int32_t* want = budgets.data() + row * kMaxLayers;
    EXPECT_EQ(got, std::vector<int64_t>(want, want + layers)) << "row " << row;
    EXPECT_EQ(Sum(got), of_row[5]) << "row " << row;
  }
}

TEST(Budgeters, AnswerForEmptySequences) {
  ToySequence none({.layers = 0, .tokens = 0});
  ToySequence empty({.layers = 2, .tokens = 0});
  empty.SetSensitivity({1, 2});
  none.SetSensitivity({});
  for (const char* budgeter : {"uniform", "pyramid", "pyramid:compat=kvpress"}) {
    EXPECT_TRUE(LayerBudgets(budgeter, none, 0).empty()) << budgeter;
    EXPECT_THAT(LayerBudgets(budgeter, empty, 0), Each(0)) << budgeter;
  }
  EXPECT_THAT(LayerBudgets("sensitivity", empty, 0), Each(0));
}

}  // namespace
}  // namespace kvern::pipeline
