// Sequences of 1 to 40 tokens: every tail of a tile, and budgets around one token.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/golden/compare.h"

namespace kvern::golden {
namespace {

constexpr char kFile[] = "syn-sweep-t1-40";
constexpr int64_t kWindow = 4;

struct Method {
  std::string golden, scorer;
  int64_t sinks = 0, tail = 0;
  double limit = 0;
};
const Method kMethods[] = {{"knorm", "key_norm", 0, 0, 5e-6},
                           {"keydiff", "keydiff", 0, 0, 2e-5},
                           {"snapkv.w4.k3", "snapkv:window=4,pool_width=3", 0, kWindow, 2e-5},
                           {"ea_stats", "expected_attention:rank=full,future=16", 4, 0, 1e-4}};

class SweepGolden : public GoldenTest {
 protected:
  static std::unique_ptr<GoldenSequence> SequenceOf(int64_t tokens) {
    auto sequence = GoldenSequence::Synthetic(kFile, tokens);
    if (tokens <= kWindow) return sequence;
    // The last queries before t, [1, q_heads, window, head_dim].
    const GoldenFile& file = GoldenFile::Of(std::string("golden/") + kFile);
    const std::vector<float> all = file.Floats("in.q");
    const std::vector<int64_t>& shape = file.At("in.q").shape;
    for (int64_t head = 0; head < shape[1]; ++head) {
      const auto first = all.begin() + (head * shape[2] + tokens - kWindow) * shape[3];
      std::vector<float>& window = sequence->side().q_window;
      window.insert(window.end(), first, first + kWindow * shape[3]);
    }
    sequence->side().window = kWindow;
    return sequence;
  }
};

TEST_P(SweepGolden, MatchesPressesAtEveryLength) {
  const GoldenFile& file = GoldenFile::Of(std::string("golden/") + kFile);
  for (const Method& method : kMethods) {
    int compared = 0;
    for (int64_t tokens = 1; tokens <= 40; ++tokens) {
      const std::string name = absl::StrFormat("T%02d.%s", tokens, method.golden);
      if (!file.Has(name + ".score")) continue;
      GoldenScores scores = ScoresIn(file, name + ".score");
      scores.begin = method.sinks;
      scores.end = tokens - method.tail;
      const Comparison how{.what = absl::StrCat(kFile, " ", method.golden),
                           .tolerance = {.limit = method.limit}};
      const auto sequence = SequenceOf(tokens);
      for (const int64_t budget : file.Budgets(name)) {
        PolicyWords words = Words(method.scorer, budget);
        words.sink_tokens = method.sinks;
        const KeepPlan plan = Plan(*sequence, words);
        CompareScores(scores, plan.scores, 1, 1, how);
        // Below what is protected a set is all protection: the peer's is an artefact of padding.
        if (budget < method.sinks + method.tail) continue;
        CompareSets(SetsIn(file, name, budget), scores, plan.keep, how);
        ++compared;
      }
    }
    EXPECT_GT(compared, 30) << method.golden;
  }
}

TEST_P(SweepGolden, MatchesTriAttentionAtEveryLength) {
  const GoldenFile& file = GoldenFile::Of(std::string("golden/") + kFile);
  for (int64_t tokens = 1; tokens <= 40; ++tokens) {
    const std::string name = absl::StrFormat("T%02d.tri", tokens);
    const GoldenScores all = ScoresIn(file, name + ".raw_mean");
    const Comparison how{.what = absl::StrCat(kFile, " tri raw_mean"),
                         .tolerance = {.limit = 1e-5, .roundings = 2}};
    const int64_t group = file.At(name + ".raw_mean").shape[1];
    for (int64_t head = 0; tokens > 1 && head < group; ++head) {
      const auto sequence = SequenceOf(tokens);
      sequence->TakeQueryHead(head);
      const auto first = all.values.begin() + head * tokens;
      const GoldenScores own{{first, first + tokens}, tokens, 0, tokens};
      const KeepPlan plan = Plan(*sequence, Words("triattention:normalize=none", 1));
      CompareScores(own, plan.scores, 1, 1, how);
    }
    for (const int64_t budget : file.Budgets(name)) {
      const auto sequence = SequenceOf(tokens);
      const GoldenSets sets = SetsIn(file, name, budget);
      const KeepPlan plan = Plan(*sequence, Words("triattention", budget));
      if (tokens > 1 && sets.gaps[0] <= 1e-5f) continue;
      EXPECT_EQ(RowOf(plan.keep, 0), sets.kept) << name;
      ++Figures::Get().Of(absl::StrCat(kFile, " tri raw_mean")).sets;
    }
  }
  EXPECT_GT(Figures::Get().Of(absl::StrCat(kFile, " tri raw_mean")).sets, 30);
}

INSTANTIATE_TEST_SUITE_P(Backends, SweepGolden, ::testing::ValuesIn(EveryBackend()), NameOf);

}  // namespace
}  // namespace kvern::golden
