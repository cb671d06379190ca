// The presses of kvpress: scores and sets on both real caches and on synthetic tensors.
#include "absl/strings/str_cat.h"
#include "tests/golden/compare.h"

namespace kvern::golden {
namespace {

// Tolerances of the goldens' README: the second model's are absolute, its keys reach 145.
struct Method {
  std::string golden;
  std::string scorer;
  int64_t sinks = 0;  // protected, not scored by the peer
  int64_t tail = 0;   // the same at the end
  Tolerance tolerance = {};
  Tolerance on_qwen = {};
  enum class Inputs { kAll, kNoCovariance, kLive } inputs = Inputs::kAll;
};

std::vector<Method> Methods(int64_t future) {
  const Tolerance ea{.limit = 1e-4}, ea_on_qwen{.limit = 1.5e-3};
  const Tolerance snap{.limit = 2e-5}, snap_on_qwen{.limit = 5e-8, .absolute = true};
  const std::string full = absl::StrCat("expected_attention:rank=full,future=", future);
  using Inputs = Method::Inputs;
  return {
      {"knorm",
       "key_norm",
       0,
       0,
       {.limit = 5e-6},
       // 3e-5 from double, which our own f32 is half an ulp of 145 away from.
       {.limit = 3e-5, .absolute = true, .roundings = 1}},
      {"keydiff", "keydiff", 0, 0, {.limit = 2e-5}, {.limit = 5e-7, .absolute = true}},
      {"snapkv.w32.k5", "snapkv:window=32,pool_width=5", 0, 32, snap, snap_on_qwen},
      {"snapkv.w8.k7", "snapkv:window=8,pool_width=7", 0, 8, snap, snap_on_qwen},
      {"snapkv.w4.k5", "snapkv:window=4,pool_width=5", 0, 4, snap, snap_on_qwen},
      {"observed_attention", "attention_mass:per_visible=true", 0, 0, {.limit = 2e-5}, {}},
      {"ea_stats", full, 4, 0, ea, ea_on_qwen},
      {"ea_stats.eps0.01", full + ",epsilon=0.01", 4, 0, ea, ea_on_qwen},
      {"ea_stats.novnorm", full + ",value_norm=false", 4, 0, ea, ea_on_qwen},
      {"ea_stats.nocov", full, 4, 0, ea, ea_on_qwen, Inputs::kNoCovariance},
      {"ea_live", full, 4, 0, {.limit = 2e-2}, {}, Inputs::kLive},
  };
}

struct Case {
  std::string file;
  std::string prefix;
  int64_t future;
  int methods;  // how many of the above it holds
};
const Case kCases[] = {
    {"pride-1024-kvpress", "", 512, 10},       {"qwen-512-kvpress", "", 512, 7},
    {"syn-g1-interleaved", "kvpress.", 64, 5}, {"syn-g3-sigma-gaps", "kvpress.", 64, 5},
    {"syn-g4-ties", "kvpress.", 64, 9},        {"syn-constant", "kvpress.", 64, 9}};

std::unique_ptr<GoldenSequence> SequenceOf(const Case& golden, const Method& method) {
  std::unique_ptr<GoldenSequence> sequence;
  const GoldenFile& file = GoldenFile::Of("golden/" + golden.file);
  if (golden.file.starts_with("syn")) {
    sequence = GoldenSequence::Synthetic(golden.file);
    sequence->UseSlotsAsPositions();
  } else {
    sequence = GoldenSequence::Real(golden.file.starts_with("pride") ? "pride-1024" : "qwen-512");
  }
  if (golden.file.starts_with("qwen")) {
    sequence->SetMoments(file.Floats("ea_stats.q_mean"), file.Floats("ea_stats.q_cov"));
  }
  if (method.inputs == Method::Inputs::kLive) {
    sequence->SetMoments(file.Floats("ea_live.q_mean"), file.Floats("ea_live.q_cov"));
  }
  if (method.inputs == Method::Inputs::kNoCovariance) sequence->DropCovariance();
  return sequence;
}

class KvpressGolden : public GoldenTest {
 protected:
  void Check(const Case& golden, const Method& method) {
    const GoldenFile& file = GoldenFile::Of("golden/" + golden.file);
    const std::string name = golden.prefix + method.golden;
    const auto sequence = SequenceOf(golden, method);
    GoldenScores scores = ScoresIn(file, name + ".score");
    scores.begin = method.sinks;
    scores.end = scores.tokens - method.tail;
    const Comparison how{
        .what = golden.file + " " + method.golden,
        .tolerance = golden.file.starts_with("qwen") ? method.on_qwen : method.tolerance};
    std::set<int64_t> budgets = file.Budgets(name);
    const bool scores_only = budgets.empty();
    if (scores_only) budgets = {scores.tokens / 2};
    for (const int64_t budget : budgets) {
      PolicyWords words = Words(method.scorer, budget);
      words.sink_tokens = method.sinks;
      const KeepPlan plan = Plan(*sequence, words);
      CompareScores(scores, plan.scores, sequence->Rows(), sequence->input().KvHeads(), how);
      if (!scores_only) CompareSets(SetsIn(file, name, budget), scores, plan.keep, how);
    }
  }
};

TEST_P(KvpressGolden, MatchesScoresAndSetsOfEveryPress) {
  for (const Case& golden : kCases) {
    int compared = 0;
    for (const Method& method : Methods(golden.future)) {
      const GoldenFile& file = GoldenFile::Of("golden/" + golden.file);
      if (!file.Has(golden.prefix + method.golden + ".score")) continue;
      Check(golden, method);
      ++compared;
    }
    EXPECT_EQ(compared, golden.methods) << golden.file;
  }
}

// Duplicated tokens tie exactly where the scorer reads a token's own key and value alone.
TEST_P(KvpressGolden, BreaksExactTiesByPosition) {
  for (const Case& golden : kCases) {
    if (golden.file != "syn-g4-ties" && golden.file != "syn-constant") continue;
    const GoldenFile& file = GoldenFile::Of("golden/" + golden.file);
    int rows = 0;
    for (const Method& method : Methods(golden.future)) {
      const std::string name = golden.prefix + method.golden;
      if (method.golden != "knorm" && method.golden != "keydiff") continue;
      const auto sequence = SequenceOf(golden, method);
      for (const int64_t budget : file.Budgets(name)) {
        const GoldenSets sets = SetsIn(file, name, budget);
        for (const std::string tie : {"recent", "oldest"}) {
          PolicyWords words = Words(method.scorer, budget);
          words.selector = "topk:tie=" + tie;
          const KeepPlan plan = Plan(*sequence, words);
          const std::vector<int32_t> want =
              file.Ints(absl::StrCat(name, ".b", budget, ".kept_", tie));
          for (int64_t row = 0; row < sequence->Rows(); ++row) {
            if (sets.gaps[row] != 0) continue;
            const auto first = want.begin() + row * budget;
            EXPECT_EQ(RowOf(plan.keep, row), std::vector<int32_t>(first, first + budget))
                << golden.file << " " << name << " b" << budget << " " << tie << " row " << row;
            ++rows;
          }
        }
      }
    }
    EXPECT_GT(rows, 0) << golden.file;
  }
}

TEST_P(KvpressGolden, KeepsSinksAndRecentTokensAsStreamingLlmDoes) {
  for (const Case& golden : kCases) {
    const GoldenFile& file = GoldenFile::Of("golden/" + golden.file);
    const auto sequence = SequenceOf(golden, {});
    const std::string name = golden.prefix + "streaming_llm.sink4";
    ASSERT_FALSE(file.Budgets(name).empty());
    for (const int64_t budget : file.Budgets(name)) {
      PolicyWords words = Words("key_norm", budget);
      words.scorers = {};
      words.selector = "sink_recent";
      words.sink_tokens = 4;
      const KeepPlan plan = Plan(*sequence, words);
      CompareSets({file.Ints(absl::StrCat(name, ".b", budget, ".kept")), {}, budget}, {}, plan.keep,
                  {.what = golden.file + " streaming_llm"});
    }
  }
}

// Re-rotated keys: the peer's phases are f32, keys reach 13 (the goldens' README: 2e-4).
TEST_P(KvpressGolden, TurnsKeptKeysToTheirNewPositions) {
  struct Turned {
    std::string file, prefix;
  };
  for (const Turned& golden : {Turned{"pride-1024-kvpress", ""}, {"syn-g4-ties", "kvpress."}}) {
    const GoldenFile& file = GoldenFile::Of("golden/" + golden.file);
    const std::string name = golden.prefix + "rerotate.knorm";
    const auto sequence = golden.prefix.empty() ? GoldenSequence::Real("pride-1024")
                                                : GoldenSequence::Synthetic(golden.file);
    sequence->Widen();
    pipeline::SequenceInput& input = sequence->input();
    const int64_t count = file.At(name + ".kept").shape[2], head_dim = sequence->model().head_dim;
    PolicyWords words = Words("key_norm", count);
    words.positions = pipeline::PositionMode::kRenumber;
    KeepPlan plan = Plan(*sequence, words);
    const std::vector<int32_t> kept = file.Ints(name + ".kept");
    // With ties at the boundary the peer's own choice is an artefact; its keys are not.
    if (golden.prefix.empty()) {
      EXPECT_EQ(plan.keep.tokens, kept);
    }
    plan.keep.tokens = kept;
    std::vector<float> keys(sequence->Rows() * count * head_dim), values(keys.size());
    pipeline::MoveTarget target;
    const int64_t layer_size = input.KvHeads() * count * head_dim;
    for (int64_t layer = 0; layer < input.Layers(); ++layer) {
      target.keys.push_back(DenseKvRef(DType::kF32, keys.data() + layer * layer_size,
                                       input.KvHeads(), count, head_dim));
      target.values.push_back(DenseKvRef(DType::kF32, values.data() + layer * layer_size,
                                         input.KvHeads(), count, head_dim));
    }
    const absl::Status moved =
        pipeline::Move(backend(), input, pipeline::PolicyOf(words), plan, target);
    ASSERT_TRUE(moved.ok()) << moved;
    const GoldenScores want = ScoresIn(file, name + ".keys");
    CompareScores(want, keys, sequence->Rows() * count, input.KvHeads() * count,
                  {.what = golden.file + " rerotate.knorm keys",
                   .tolerance = {.limit = 2e-4, .absolute = true}});
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, KvpressGolden, ::testing::ValuesIn(EveryBackend()), NameOf);

}  // namespace
}  // namespace kvern::golden
