// Distances between the product's answers and the peers', and the table of the worst ones.
#ifndef KVERN_TESTS_GOLDEN_COMPARE_H_
#define KVERN_TESTS_GOLDEN_COMPARE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backends.h"
#include "server/pipeline/plan.h"
#include "tests/golden/golden_sequence.h"
#include "tests/unit/server/pipeline/live_sequence.h"

namespace kvern::golden {

using pipeline::KeepPlan;
using pipeline::PolicyWords;

// Every backend and instruction set that this machine runs; in the twin with cuda that one alone,
// as the others have been held to the same files already.
inline std::vector<BackendOptions> EveryBackend() {
  if (BackendNames().back() == "cuda") {
    return {{.name = "cuda", .scratch_bytes = int64_t{1} << 30, .hang_seconds = 300}};
  }
  std::vector<BackendOptions> all = {{.name = "ref"}};
  for (const std::string& set : InstructionSets()) {
    all.push_back({.name = "cpu", .instruction_set = set, .threads = 2});
  }
  return all;
}
inline std::string NameOf(const ::testing::TestParamInfo<BackendOptions>& info) {
  return info.param.name == "cpu" ? "cpu_" + info.param.instruction_set : info.param.name;
}

// Worst distance seen per golden and method, in its tolerance's unit; printed when the binary ends,
// and copied into docs/goldens.md.
class Figures : public ::testing::Environment {
 public:
  struct Figure {
    double worst = 0;
    double limit = 0;
    std::string unit;
    int64_t rows = 0;
    int64_t ambiguous = 0;
    int64_t sets = 0;
  };
  static Figures& Get() {
    static Figures& figures = *new Figures();  // owned by GoogleTest once it is registered
    return figures;
  }
  Figure& Of(const std::string& what) { return figures_[what]; }
  void TearDown() override {
    if (figures_.empty()) return;
    std::printf("%-58s %9s %9s %-8s %6s %6s %9s\n", "golden", "worst", "limit", "unit", "rows",
                "sets", "ambiguous");
    for (const auto& [what, figure] : figures_) {
      std::printf("%-58s %9.2g %9.2g %-8s %6lld %6lld %9lld\n", what.c_str(), figure.worst,
                  figure.limit, figure.unit.c_str(), static_cast<long long>(figure.rows),
                  static_cast<long long>(figure.sets), static_cast<long long>(figure.ambiguous));
    }
  }

 private:
  std::map<std::string, Figure> figures_;
};
inline const ::testing::Environment* const kFigures =
    ::testing::AddGlobalTestEnvironment(&Figures::Get());

// How far a score may be from the peer's: a share of the row's standard deviation, or absolute.
struct Tolerance {
  double limit = 0;
  bool absolute = false;
  // How many f32 roundings of the score itself lie between the two sides: where scores are large
  // and their deviation is small, each may exceed the limit (half an ulp of the largest).
  int roundings = 0;
};

// Scores of a golden: rows of `tokens`, of which `begin` to `end` may be compared.
struct GoldenScores {
  std::vector<float> values;
  int64_t tokens = 0;
  int64_t begin = 0;
  int64_t end = 0;
  // Row of the golden for row (layer, head): a mode may have one set per head, or one for all.
  int64_t RowOf(int64_t row, int64_t rows, int64_t kv_heads) const {
    const int64_t held = static_cast<int64_t>(values.size()) / tokens;
    return held == rows ? row : held == kv_heads ? row % kv_heads : 0;
  }
};

inline GoldenScores ScoresIn(const GoldenFile& file, const std::string& tensor) {
  GoldenScores scores{file.Floats(tensor)};
  scores.tokens = file.At(tensor).shape.back();
  scores.end = scores.tokens;
  return scores;
}

struct RowSpread {
  double deviation = 0;
  double largest = 0;
};
inline RowSpread SpreadOf(const float* row, int64_t begin, int64_t end) {
  double sum = 0, squares = 0;
  RowSpread spread;
  for (int64_t i = begin; i < end; ++i) {
    sum += row[i];
    spread.largest = std::max(spread.largest, std::fabs(double{row[i]}));
  }
  const double count = static_cast<double>(std::max<int64_t>(1, end - begin)), mean = sum / count;
  for (int64_t i = begin; i < end; ++i) squares += (row[i] - mean) * (row[i] - mean);
  spread.deviation = std::sqrt(squares / count);
  // A row of equal scores has no deviation to measure by: its own size is the measure.
  if (spread.deviation <= 1e-6 * spread.largest) spread.deviation = spread.largest;
  if (spread.deviation == 0) spread.deviation = 1;
  return spread;
}

// In units of the scores.
inline double AllowedIn(const float* row, const GoldenScores& golden, Tolerance tolerance) {
  const RowSpread spread = SpreadOf(row, golden.begin, golden.end);
  const double rounding = tolerance.roundings * spread.largest * 0x1p-24;
  return rounding + tolerance.limit * (tolerance.absolute ? 1 : spread.deviation);
}

// `got` [rows, got_tokens]: its columns shift + begin.. are the golden's columns begin... Every
// other column of `got` must be NaN: the product scores what the peer scores.
struct Comparison {
  std::string what;
  Tolerance tolerance = {};
  int64_t shift = 0;
  double scale = 1;  // product = scale * golden
};

inline void CompareScores(const GoldenScores& golden, const std::vector<float>& got, int64_t rows,
                          int64_t kv_heads, const Comparison& how) {
  const int64_t width = static_cast<int64_t>(got.size()) / rows;
  ASSERT_EQ(width, golden.tokens + how.shift) << how.what;
  Figures::Figure& figure = Figures::Get().Of(how.what);
  figure.limit = how.tolerance.limit;
  figure.unit = how.tolerance.absolute ? "absolute" : "row std";
  for (int64_t row = 0; row < rows; ++row) {
    const float* want = golden.values.data() + golden.RowOf(row, rows, kv_heads) * golden.tokens;
    const double allowed = AllowedIn(want, golden, how.tolerance);
    double worst = 0;
    for (int64_t column = 0; column < width; ++column) {
      const int64_t token = column - how.shift;
      const float score = got[row * width + column];
      if (token < golden.begin || token >= golden.end) {
        EXPECT_TRUE(std::isnan(score)) << how.what << " row " << row << " token " << column;
        continue;
      }
      const double distance = std::fabs(score / how.scale - want[token]);
      ASSERT_FALSE(std::isnan(distance)) << how.what << " row " << row << " token " << column;
      worst = std::max(worst, distance);
    }
    EXPECT_LE(worst, allowed) << how.what << " row " << row;
    const double unit =
        how.tolerance.absolute ? 1 : SpreadOf(want, golden.begin, golden.end).deviation;
    figure.worst = std::max(figure.worst, worst / unit);
    ++figure.rows;
  }
}

// A kept set of the golden: exact where the boundary's gap exceeds the scores' tolerance, else the
// two sets must be worth the same (the goldens' README).
struct GoldenSets {
  std::vector<int32_t> kept;  // [rows, count]
  std::vector<float> gaps;    // [rows]; empty: all wide
  int64_t count = 0;
};
inline GoldenSets SetsIn(const GoldenFile& file, const std::string& method, int64_t budget) {
  const std::string name = method + ".b" + std::to_string(budget);
  GoldenSets sets{file.Ints(name + ".kept"), {}, budget};
  if (file.Has(name + ".gap")) sets.gaps = file.Floats(name + ".gap");
  return sets;
}

inline std::vector<int32_t> RowOf(const KeepList& keep, int64_t row) {
  const int64_t layer = row / keep.kv_heads, head = row % keep.kv_heads;
  const int32_t* tokens = keep.Row(layer, head);
  return {tokens, tokens + keep.Count(layer, head)};
}

// Whether `got` is a best set of scores that are known up to `allowed`: each swapped token may be
// worse by twice that.
inline void ExpectWorthAsMuch(const std::vector<int32_t>& got, const std::vector<int32_t>& want,
                              const float* scores, int64_t shift, double allowed,
                              const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  std::vector<int32_t> only_got, only_want;
  std::set_difference(got.begin(), got.end(), want.begin(), want.end(),
                      std::back_inserter(only_got));
  std::set_difference(want.begin(), want.end(), got.begin(), got.end(),
                      std::back_inserter(only_want));
  double loss = 0;
  for (const int32_t token : only_want) loss += scores[token - shift];
  for (const int32_t token : only_got) loss -= scores[token - shift];
  EXPECT_LE(loss, 2 * allowed * static_cast<double>(only_got.size())) << what;
}

inline void CompareSets(const GoldenSets& sets, const GoldenScores& golden, const KeepList& keep,
                        const Comparison& how) {
  Figures::Figure& figure = Figures::Get().Of(how.what);
  const int64_t rows = keep.layers * keep.kv_heads;
  const int64_t held = static_cast<int64_t>(sets.kept.size()) / sets.count;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t golden_row = held == rows ? row : held == keep.kv_heads ? row % keep.kv_heads : 0;
    const auto first = sets.kept.begin() + golden_row * sets.count;
    const std::vector<int32_t> want(first, first + sets.count), got = RowOf(keep, row);
    const float* scores = golden.values.data() + golden_row * golden.tokens;
    const double allowed = golden.tokens == 0 ? 0 : AllowedIn(scores, golden, how.tolerance);
    const std::string what =
        how.what + " b" + std::to_string(sets.count) + " row " + std::to_string(row);
    ++figure.sets;
    if (sets.gaps.empty() || sets.gaps[golden_row] > allowed) {
      EXPECT_EQ(got, want) << what;
    } else {
      ++figure.ambiguous;
      ExpectWorthAsMuch(got, want, scores, how.shift, allowed, what);
    }
  }
}

// A policy with nothing protected but what the golden's method protects.
inline PolicyWords Words(const std::string& scorer, int64_t budget) {
  PolicyWords words;
  words.budget = pipeline::TokenBudget{budget};
  words.scorers = {scorer};
  words.sink_tokens = 0;
  words.recent_tokens = 0;
  return words;
}

class GoldenTest : public ::testing::TestWithParam<BackendOptions> {
 protected:
  void SetUp() override {
    auto backend = MakeBackend(GetParam());
    ASSERT_TRUE(backend.ok()) << backend.status();
    backend_ = *std::move(backend);
  }
  // ref is scalar, and cuda may be emulated.
  bool IsFast() const { return GetParam().name == "cpu"; }
  KeepPlan Plan(GoldenSequence& sequence, const PolicyWords& words) {
    auto plan = pipeline::PlanKeep(*backend_, sequence.input(), pipeline::PolicyOf(words));
    EXPECT_TRUE(plan.ok()) << plan.status();
    return plan.ok() ? *std::move(plan) : KeepPlan();
  }
  Backend& backend() { return *backend_; }

 private:
  std::unique_ptr<Backend> backend_;
};

}  // namespace kvern::golden

#endif  // KVERN_TESTS_GOLDEN_COMPARE_H_
