// TriAttention against the authors' own code: scores and sets of every mode, raw scores of every
// query head, pinned prompts, a second round, exact ties.
#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/golden/compare.h"

namespace kvern::golden {
namespace {

// Raw scores are f32 on both sides.
constexpr Tolerance kScores{.limit = 1e-5, .roundings = 2};
// z-scores of the second model where its README grants plain f32: the peer's union differs by 2e-5
// from the maximum of its own heads, and with offsets=max the rounding of each column's query
// against a key bias of 145 does not cancel.
constexpr Tolerance kPlainF32{.limit = 1e-4};

// "per_head.mean.z.gmax" in the product's words.
struct Settings {
  std::string mode, offsets, normalize, group;
  PolicyWords InWords(int64_t budget) const {
    PolicyWords words = Words(absl::StrCat("triattention:offsets=", offsets,
                                           ",normalize=", normalize == "z" ? "zscore" : "none",
                                           ",group=", group == "gmax" ? "max" : "mean"),
                              budget);
    words.selector = mode == "per_head" ? "topk:share=layers,reduce=mean"
                     : mode == "union"  ? "topk:share=all,reduce=max"
                                        : "topk";
    return words;
  }
};

struct Case {
  std::string file;
  std::string prefix;  // of its tensors
  int64_t pinned = 0;  // first tokens that stay
};
Tolerance ToleranceOf(const Case& golden, const Settings& settings) {
  const bool plain = settings.mode == "union" ||
                     (settings.mode == "per_layer_per_head" && settings.offsets == "max");
  return golden.file == "qwen-512-tri" && settings.normalize == "z" && plain ? kPlainF32 : kScores;
}
const Case kCases[] = {{"pride-1024-tri", ""},        {"pride-1024-tri-pinned100", "", 100},
                       {"qwen-512-tri", ""},          {"syn-g1-interleaved", "tri."},
                       {"syn-g3-sigma-gaps", "tri."}, {"syn-g4-ties", "tri."},
                       {"syn-long-t", "tri."}};

std::unique_ptr<GoldenSequence> SequenceOf(const std::string& file) {
  if (file.starts_with("pride")) return GoldenSequence::Real("pride-1024");
  if (file.starts_with("qwen")) return GoldenSequence::Real("qwen-512");
  return GoldenSequence::Synthetic(file);
}

class TriAttentionGolden : public GoldenTest {
 protected:
  void Check(const Case& golden, const Settings& settings) {
    const GoldenFile& file = GoldenFile::Of("golden/" + golden.file);
    const std::string method = absl::StrCat(golden.prefix, settings.mode, ".", settings.offsets,
                                            ".", settings.normalize, ".", settings.group);
    if (!file.Has(method + ".score")) return;
    const GoldenScores scores = ScoresIn(file, method + ".score");
    const auto sequence = SequenceOf(golden.file);
    if (golden.pinned > 0) sequence->input().protected_ranges = {{0, golden.pinned}};
    const double sigma = sequence->model().rope.attention_scaling;
    const Comparison how{
        .what = absl::StrCat(golden.file, " ", settings.mode, " ", settings.offsets, " ",
                             settings.normalize, " ", settings.group),
        .tolerance = ToleranceOf(golden, settings),
        .shift = golden.pinned,
        .scale = settings.normalize == "z" ? 1.0 : sigma};
    ++compared_;
    for (const int64_t budget : file.Budgets(method)) {
      const KeepPlan plan = Plan(*sequence, settings.InWords(budget));
      CompareSets(SetsIn(file, method, budget), scores, plan.keep, how);
      if (budget == sequence->input().Tokens()) continue;  // the identity scores nothing
      CompareScores(scores, plan.scores, sequence->Rows(), sequence->input().KvHeads(), how);
    }
  }
  int compared_ = 0;
};

TEST_P(TriAttentionGolden, MatchesScoresAndSetsOfEveryMode) {
  for (const Case& golden : kCases) {
    compared_ = 0;
    for (const char* mode : {"per_layer_per_head", "per_head", "union"}) {
      for (const char* offsets : {"mean", "max"}) {
        for (const char* normalize : {"z", "raw"}) {
          for (const char* group : {"gmax", "gmean"}) {
            Check(golden, {mode, offsets, normalize, group});
          }
        }
      }
    }
    EXPECT_EQ(compared_, 13) << golden.file;
  }
}

// One query head of each group at a time: raw scores as they are before any reduction.
TEST_P(TriAttentionGolden, MatchesRawScoresOfEveryQueryHead) {
  for (const Case& golden : kCases) {
    if (golden.pinned > 0) continue;
    const GoldenFile& file = GoldenFile::Of("golden/" + golden.file);
    for (const std::string offsets : {"mean", "max"}) {
      const GoldenScores all = ScoresIn(file, absl::StrCat(golden.prefix, "raw_", offsets));
      const auto whole = SequenceOf(golden.file);
      const int64_t group = whole->model().q_heads / whole->model().kv_heads;
      for (int64_t head = 0; head < group; ++head) {
        const auto sequence = SequenceOf(golden.file);
        sequence->TakeQueryHead(head);
        const int64_t tokens = all.tokens;
        GoldenScores own{.values = {}, .tokens = tokens, .begin = 0, .end = tokens};
        for (int64_t row = 0; row < sequence->Rows(); ++row) {
          const auto first = all.values.begin() + (row * group + head) * tokens;
          own.values.insert(own.values.end(), first, first + tokens);
        }
        const KeepPlan plan = Plan(
            *sequence, Words(absl::StrCat("triattention:normalize=none,offsets=", offsets), 1));
        CompareScores(own, plan.scores, sequence->Rows(), sequence->input().KvHeads(),
                      {.what = absl::StrCat(golden.file, " raw_", offsets, " per query head"),
                       .tolerance = kScores,
                       .scale = sequence->model().rope.attention_scaling});
      }
    }
  }
}

// The positions of a compacted cache differ by head; the form on rotated keys does not ask for
// them.
TEST_P(TriAttentionGolden, MatchesASecondRoundWithAndWithoutPositions) {
  const GoldenFile& file = GoldenFile::Of("golden/pride-1024-tri-round2");
  const auto sequence = GoldenSequence::Real("pride-1024");
  sequence->CompactTo(file.Ints("round1.kept"));
  sequence->input().logical_tokens = static_cast<int64_t>(file.Number("t"));
  const GoldenScores scores = ScoresIn(file, "round2.score");
  const PolicyWords words = Settings{"per_layer_per_head", "mean", "z", "gmax"}.InWords(128);
  const Comparison how{.what = "pride-1024-tri-round2", .tolerance = kScores};
  const KeepPlan plan = Plan(*sequence, words);
  CompareScores(scores, plan.scores, sequence->Rows(), sequence->input().KvHeads(), how);
  CompareSets(SetsIn(file, "round2", 128), scores, plan.keep, how);

  std::fill(sequence->input().positions.begin(), sequence->input().positions.end(), 0);
  const KeepPlan blind = Plan(*sequence, words);
  EXPECT_EQ(blind.keep.tokens, plan.keep.tokens);
  EXPECT_EQ(blind.scores, plan.scores);
}

TEST_P(TriAttentionGolden, BreaksExactTiesByPosition) {
  for (const std::string name : {"syn-g4-ties", "syn-constant"}) {
    const GoldenFile& file = GoldenFile::Of("golden/" + name);
    const auto sequence = GoldenSequence::Synthetic(name);
    const GoldenScores scores = ScoresIn(file, "tri_exact_ties.score");
    for (const int64_t budget :
         name == "syn-g4-ties" ? std::vector<int64_t>{7, 16} : std::vector<int64_t>{6}) {
      for (const std::string tie : {"recent", "oldest"}) {
        PolicyWords words = Words("triattention", budget);
        words.selector = "topk:tie=" + tie;
        const KeepPlan plan = Plan(*sequence, words);
        const Comparison how{.what = name + " tri_exact_ties", .tolerance = kScores};
        CompareScores(scores, plan.scores, sequence->Rows(), sequence->input().KvHeads(), how);
        const GoldenSets sets{
            file.Ints(absl::StrCat("tri_exact_ties.b", budget, ".kept_", tie)), {}, budget};
        CompareSets(sets, scores, plan.keep, how);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, TriAttentionGolden, ::testing::ValuesIn(EveryBackend()), NameOf);

}  // namespace
}  // namespace kvern::golden
