// alpha: the picks of a plain double greedy, as sets of every prefix of its order.
#include "absl/strings/str_cat.h"
#include "tests/golden/compare.h"

namespace kvern::golden {
namespace {

struct Case {
  std::string file;
  std::string cache;   // empty: synthetic
  std::string scores;  // what it picks by
  std::vector<int64_t> budgets;
  std::vector<std::string> lambdas;
};
const std::vector<std::string> kSynthetic = {"0", "0.25", "0.5", "1", "2"};
const Case kCases[] = {{"pride-1024-alpha", "pride-1024", "score", {64, 256}, {"0", "0.5", "1"}},
                       {"qwen-512-alpha", "qwen-512", "score", {64}, {"0", "0.5", "1"}},
                       {"syn-g1-interleaved", "", "alpha.score", {5, 16}, kSynthetic},
                       {"syn-g3-sigma-gaps", "", "alpha.score", {8}, kSynthetic},
                       {"syn-g4-ties", "", "alpha.score", {7, 16}, kSynthetic},
                       {"syn-constant", "", "alpha.score", {6}, kSynthetic},
                       {"syn-long-t", "", "alpha.score", {12}, kSynthetic}};

// Beyond a pick whose margin is below the accuracy of the score, two greedy runs may part. A margin
// of exactly 0 is a tie between equal inputs: the tie rule decides it.
int64_t DecidedPicks(const std::vector<float>& margins, int64_t row, int64_t budget) {
  for (int64_t pick = 0; pick < budget; ++pick) {
    const float margin = margins[row * budget + pick];
    if (margin > 0 && margin < 1e-6f) return pick;
  }
  return budget;
}

class AlphaGolden : public GoldenTest {
 protected:
  // Sets do not tell an order; sets of every prefix do. The long runs are sampled.
  std::vector<int64_t> Prefixes(int64_t budget) const {
    const int64_t step = budget <= 16 ? 1 : IsFast() ? budget / 32 : budget / 4;
    std::vector<int64_t> prefixes;
    for (int64_t prefix = step; prefix <= budget; prefix += step) prefixes.push_back(prefix);
    return prefixes;
  }

  void Check(const Case& golden, GoldenSequence& sequence, int64_t budget,
             const std::string& lambda, const std::string& tie) {
    const GoldenFile& file = GoldenFile::Of("golden/" + golden.file);
    const std::string name = absl::StrCat("alpha.b", budget, ".lam", lambda);
    const std::string picks_name = name + (tie == "recent" ? ".picks_recent" : ".picks");
    if (!file.Has(picks_name)) return;  // real scores do not tie: their picks are listed once
    const std::vector<int32_t> picks = file.Ints(picks_name);
    const std::vector<float> margins = file.Floats(name + ".margin");
    Figures::Figure& figure = Figures::Get().Of(golden.file + " alpha picks");
    for (const int64_t prefix : Prefixes(budget)) {
      PolicyWords words = Words("external", prefix);
      words.selector = absl::StrCat("diverse:lambda=", lambda, ",tie=", tie);
      const KeepPlan plan = Plan(sequence, words);
      words.selector = "topk:tie=" + tie;
      const KeepPlan best = lambda == "0" ? Plan(sequence, words) : plan;
      EXPECT_EQ(plan.keep.tokens, best.keep.tokens) << "lambda 0 is top-k";
      for (int64_t row = 0; row < sequence.Rows(); ++row) {
        if (prefix > DecidedPicks(margins, row, budget)) {
          ++figure.ambiguous;
          continue;
        }
        std::vector<int32_t> want(picks.begin() + row * budget,
                                  picks.begin() + row * budget + prefix);
        std::sort(want.begin(), want.end());
        EXPECT_EQ(RowOf(plan.keep, row), want)
            << golden.file << " " << picks_name << " first " << prefix << " row " << row;
        ++figure.sets;
      }
    }
  }
};

TEST_P(AlphaGolden, MakesTheSamePicksInTheSameOrder) {
  for (const Case& golden : kCases) {
    const GoldenFile& file = GoldenFile::Of("golden/" + golden.file);
    const auto sequence = golden.cache.empty() ? GoldenSequence::Synthetic(golden.file)
                                               : GoldenSequence::Real(golden.cache);
    sequence->side().external_scores = file.Floats(golden.scores);
    const int64_t before = Figures::Get().Of(golden.file + " alpha picks").sets;
    for (const int64_t budget : golden.budgets) {
      for (const std::string& lambda : golden.lambdas) {
        for (const std::string tie : {"oldest", "recent"}) {
          Check(golden, *sequence, budget, lambda, tie);
        }
      }
    }
    EXPECT_GT(Figures::Get().Of(golden.file + " alpha picks").sets, before) << golden.file;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AlphaGolden, ::testing::ValuesIn(EveryBackend()), NameOf);

}  // namespace
}  // namespace kvern::golden
