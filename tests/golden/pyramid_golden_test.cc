// PyramidKV of kvpress: budgets per layer, and the sets of SnapKV under them.
#include "absl/strings/str_cat.h"
#include "tests/golden/compare.h"

namespace kvern::golden {
namespace {

// Budgets depend on geometry alone: no bytes, no backend.
std::vector<int32_t> BudgetsOf(int64_t layers, int64_t tokens, const pipeline::Budget& budget,
                               const std::string& budgeter) {
  pipeline::ModelSpec model;
  model.num_layers = static_cast<int32_t>(layers);
  model.kv_heads = model.q_heads = 1;
  model.head_dim = 8;
  const pipeline::Calibrations calibrations;
  const pipeline::SideTensors side;
  pipeline::SequenceInput input;
  input.model = &model;
  input.calibrations = &calibrations;
  input.side = &side;
  input.keys.assign(layers, DenseKvRef(DType::kBF16, nullptr, 1, tokens, 8));
  input.values = input.keys;
  PolicyWords words = Words("key_norm", 0);
  words.budget = budget;
  words.budgeter = budgeter;
  const auto plan = pipeline::PlanCounts(input, pipeline::PolicyOf(words));
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (!plan.ok()) return std::vector<int32_t>(layers);
  return {plan->counts.begin(), plan->counts.end()};
}

// A mean of a fraction of a token the product floors (ruling 2) and the peer does not: those rows
// are compared below the planner, in tests/unit/server/pipeline/budgeters_test.cc.
TEST(PyramidBudgets, AreThoseOfThePeerWhereTheMeanIsWhole) {
  const GoldenFile& file = GoldenFile::Of("golden/pyramid-budgets");
  const std::vector<int32_t> rows = file.Ints("rows"), budgets = file.Ints("budgets");
  const int64_t cases = file.At("rows").shape[0], width = file.At("budgets").shape[1];
  Figures::Figure& figure = Figures::Get().Of("pyramid-budgets");
  for (int64_t i = 0; i < cases; ++i) {
    const int32_t* row = rows.data() + i * 6;  // layers, tokens, window, beta, removed, sum
    if (int64_t{row[1]} * (1000 - row[4]) % 1000 != 0) continue;
    const std::vector<int32_t> got =
        BudgetsOf(row[0], row[1], pipeline::KeepRatioBudget{1 - row[4] / 1000.0},
                  absl::StrCat("pyramid:compat=kvpress,window=", row[2], ",beta=", row[3]));
    const int32_t* want = budgets.data() + i * width;
    EXPECT_EQ(got, std::vector<int32_t>(want, want + row[0])) << "row " << i;
    ++figure.rows;
  }
  EXPECT_EQ(figure.rows, 9);
}

struct Case {
  std::string cache;
  int64_t model_layers;  // the ramp is over all of them, the cache holds eight
  int64_t window;
  std::string ratio;    // removed
  int64_t mean_budget;  // tokens per layer
};
const Case kCases[] = {{"pride-1024", 30, 32, "0.5", 512},
                       {"pride-1024", 30, 32, "0.25", 768},
                       {"pride-1024", 30, 16, "0.5", 512},
                       {"qwen-512", 24, 32, "0.5", 256}};

class PyramidGolden : public GoldenTest {};

TEST_P(PyramidGolden, GivesLayersTheirBudgetsAndSnapKvItsSets) {
  for (const Case& golden : kCases) {
    const GoldenFile& file = GoldenFile::Of(absl::StrCat("golden/", golden.cache, "-kvpress"));
    const auto sequence = GoldenSequence::Real(golden.cache);
    const std::string name = absl::StrCat("pyramidkv.w", golden.window, ".r", golden.ratio);
    const std::vector<uint8_t> mask = file.Values<uint8_t>(name + ".kept_mask");
    const int64_t heads = sequence->input().KvHeads(), tokens = sequence->input().Tokens();
    const std::vector<int32_t> ramp =
        BudgetsOf(golden.model_layers, tokens, pipeline::TokenBudget{golden.mean_budget},
                  absl::StrCat("pyramid:compat=kvpress,beta=20,window=", golden.window));
    const std::vector<int32_t> budgets = file.Ints(name + ".budget");
    Figures::Figure& figure = Figures::Get().Of(golden.cache + "-kvpress " + name);
    for (int64_t layer = 0; layer < sequence->input().Layers(); ++layer) {
      EXPECT_EQ(ramp[sequence->input().layer_indices[layer]], budgets[layer]) << name;
      const KeepPlan plan =
          Plan(*sequence, Words(absl::StrCat("snapkv:window=", golden.window), budgets[layer]));
      for (int64_t row = layer * heads; row < (layer + 1) * heads; ++row) {
        std::vector<int32_t> want;
        for (int64_t token = 0; token < tokens; ++token) {
          if (mask[row * tokens + token] != 0) want.push_back(static_cast<int32_t>(token));
        }
        EXPECT_EQ(RowOf(plan.keep, row), want) << golden.cache << " " << name << " row " << row;
        ++figure.sets;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, PyramidGolden, ::testing::ValuesIn(EveryBackend()), NameOf);

}  // namespace
}  // namespace kvern::golden
