// Lazy greedy on a filtered pool picks what eager greedy picks, and top-k where lambda is 0.
#include <deque>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/parity/parity.h"
#include "tests/support/device_kv.h"
#include "tests/support/host_kv.h"

namespace kvern {
namespace {

using support::HostKv;
using support::HostKvSpec;

// One random problem: ties, duplicated and zero values, NaN scores, forced tokens, any count.
struct Problem {
  Problem(const HostKvSpec& spec, uint64_t seed)
      : random(seed), kv(support::RandomKv(spec, seed)), rows(spec.layers * spec.kv_heads) {
    scores = support::RandomFloats(rows * spec.tokens, seed + 1);
    forced.resize(scores.size());
    candidates.resize(scores.size());
    counts.resize(rows);
    RepeatValues();
    for (int64_t row = 0; row < rows; ++row) FillRow(row);
    const uint8_t* forced_data = forced.data();
    const uint8_t* candidate_data = candidates.data();
    const float* score_data = scores.data();
    args.scores = DenseView(score_data, spec.layers, spec.kv_heads, spec.tokens);
    args.forced = DenseView(forced_data, spec.layers, spec.kv_heads, spec.tokens);
    args.candidates = DenseView(candidate_data, spec.layers, spec.kv_heads, spec.tokens);
    args.values = kv.refs();
    const float lambdas[] = {0.0f, 0.25f, 0.5f, 1.0f, 2.0f};
    args.lambda = lambdas[random() % 5];
    args.tie = random() % 2 == 0 ? TieRule::kRecent : TieRule::kOldest;
    args.scale = random() % 3 == 0 ? ScoreScale::kMinMax : ScoreScale::kAsIs;
  }

  void RepeatValues() {
    const HostKvSpec& spec = kv.spec();
    const bool clustered = random() % 2 == 0;
    for (int64_t layer = 0; layer < spec.layers; ++layer) {
      for (int64_t head = 0; head < spec.kv_heads; ++head) {
        for (int64_t token = 0; token < kv.Length(head); ++token) {
          const uint64_t draw = random() % 16;
          if (draw > 0 && !(clustered && draw < 12)) continue;
          const int64_t like = static_cast<int64_t>(random() % (token + 1)) % 6;
          for (int64_t d = 0; d < spec.head_dim; ++d) {
            kv.Set(layer, head, token, d, draw == 0 ? 0.0f : kv.Get(layer, head, like, d));
          }
        }
      }
    }
  }

  void FillRow(int64_t row) {
    const HostKvSpec& spec = kv.spec();
    const bool ties = random() % 2 == 0;
    int32_t most = 0;
    for (int64_t token = 0; token < spec.tokens; ++token) {
      const int64_t i = row * spec.tokens + token;
      if (ties) scores[i] = 0.25f * static_cast<float>(random() % 5) - 0.5f;
      if (random() % 32 == 0) scores[i] = std::numeric_limits<float>::quiet_NaN();
      const uint64_t draw = random() % 10;
      forced[i] = draw == 0;
      candidates[i] = draw > 1 && token < kv.Length(row % spec.kv_heads);
      counts[row] += forced[i];
      most += candidates[i];
    }
    counts[row] += most == 0 ? 0 : static_cast<int32_t>(random() % (most + 1));
  }

  // Rows of a group get the scores, masks and counts of its first.
  void Share(const std::vector<std::vector<int64_t>>& groups) {
    const int64_t tokens = kv.spec().tokens;
    for (const std::vector<int64_t>& group : groups) {
      for (const int64_t row : group) {
        if (row == group[0]) continue;
        const auto copy_row = [&](auto& rows_of) {
          std::copy_n(rows_of.begin() + group[0] * tokens, tokens, rows_of.begin() + row * tokens);
        };
        copy_row(scores);
        copy_row(forced);
        copy_row(candidates);
        counts[row] = counts[group[0]];
      }
    }
    args.groups = groups;
  }

  KeepList ExpectParity() {
    const int32_t* data = counts.data();
    return support::ExpectKeepParity(
        DenseView(data, args.scores.shape[0], args.scores.shape[1]),
        [&](Backend& backend, KeepList* keep) { return backend.Diverse(args, keep); });
  }

  std::mt19937_64 random;
  HostKv kv;
  int64_t rows;
  std::vector<float> scores;
  std::vector<uint8_t> forced;
  std::vector<uint8_t> candidates;
  std::vector<int32_t> counts;
  DiverseArgs args;
};

TEST(DiverseParity, LazyPicksEqualEagerPicks) {
  // 25 rows in each of 40 calls: a thousand problems.
  for (uint64_t seed = 0; seed < 40; ++seed) {
    HostKvSpec spec;
    spec.dtype = seed % 2 == 0 ? DType::kF32 : DType::kBF16;
    spec.layers = 5;
    spec.kv_heads = 5;
    spec.tokens = 1 + static_cast<int64_t>(seed * 7 % 90);
    spec.head_dim = seed % 3 == 0 ? 8 : 40;
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Problem(spec, 1000 + seed).ExpectParity();
  }
}

// More picks than are compared at a time, more candidates than wait side by side, one row or three
// to a problem.
TEST(DiverseParity, ManyPicksEqualEagerPicks) {
  for (uint64_t seed = 0; seed < 2; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    HostKvSpec spec;
    spec.kv_heads = 3;
    spec.tokens = 700;
    spec.head_dim = 24;
    Problem problem(spec, 2000 + seed);
    problem.args.lambda = 0.5f;
    problem.counts.assign(spec.kv_heads, 330);
    if (seed == 1) problem.Share({{0, 1, 2}});
    problem.ExpectParity();
  }
}

TEST(DiverseParity, EveryBackendReadsEveryLayout) {
  for (const HostKvSpec& spec : support::ParitySpecs()) {
    SCOPED_TRACE(support::Describe(spec));
    Problem problem(spec, 77);
    problem.args.lambda = 0.5f;
    problem.ExpectParity();
  }
}

TEST(DiverseParity, GroupsShareOneAnswer) {
  HostKvSpec spec;
  spec.layers = 2;
  spec.kv_heads = 3;
  spec.tokens = 60;
  Problem problem(spec, 78);
  problem.Share({{0, 3}, {1, 4, 5}});
  problem.args.lambda = 1.0f;
  const KeepList keep = problem.ExpectParity();
  EXPECT_TRUE(std::equal(keep.Row(0, 0), keep.Row(0, 0) + keep.Count(0, 0), keep.Row(1, 0)));
}

// What every problem keeps, by one call or one each, with values and scores where the backend reads
// them in place.
std::vector<std::vector<int32_t>> PicksOf(Backend& backend, std::deque<Problem>& problems,
                                          bool together) {
  std::deque<support::DeviceKv> values;
  std::deque<Buffer> scores;
  std::deque<KeepList> keeps;
  std::vector<DiverseArgs> args;
  for (Problem& problem : problems) {
    values.emplace_back(backend, problem.kv);
    const std::span<const std::byte> bytes = std::as_bytes(std::span(problem.scores));
    scores.push_back(backend.Allocate(std::ssize(bytes)).value());
    EXPECT_TRUE(backend.CopyIn(bytes, scores.back().data()).ok());
    const HostKvSpec& spec = problem.kv.spec();
    const int32_t* counts = problem.counts.data();
    keeps.push_back(KeepList::WithCounts(DenseView(counts, spec.layers, spec.kv_heads)));
    DiverseArgs& one = args.emplace_back(problem.args);
    one.values = values.back().refs();
    one.scores.data = reinterpret_cast<const float*>(scores.back().data());
    one.keep = &keeps.back();
  }
  if (together) {
    EXPECT_TRUE(backend.Diverse(args).ok());
  } else {
    for (const DiverseArgs& one : args) EXPECT_TRUE(backend.Diverse(std::span(&one, 1)).ok());
  }
  std::vector<std::vector<int32_t>> picks;
  for (const KeepList& keep : keeps) picks.push_back(keep.tokens);
  return picks;
}

TEST(DiverseParity, ProblemsTogetherInMemoryOfTheBackendAreEachOfThemAlone) {
  using enum support::TileLayout;
  const HostKvSpec kinds[] = {
      {.dtype = DType::kBF16, .kv_heads = 2, .head_dim = 40, .layout = kHeadMajor},
      {.dtype = DType::kF32, .kv_heads = 2, .head_dim = 24, .layout = kColumns},
      {.dtype = DType::kF16, .kv_heads = 2, .head_dim = 8, .layout = kTokenMajor},
      {.dtype = DType::kBF16, .kv_heads = 2, .head_dim = 264, .layout = kColumns},
  };
  uint64_t seed = 3000;
  for (HostKvSpec spec : kinds) {
    const bool oldest_wins = seed % 8 != 0, to_unit = spec.layout == kColumns;
    std::deque<Problem> problems;
    for (const int32_t tokens : {60, 1, 270, 33}) {
      spec.tokens = tokens;
      spec.layers = 1 + static_cast<int64_t>(problems.size() % 2);
      spec.block_tokens = problems.size() % 2 == 0 ? 16 : 7;
      spec.order = support::BlockOrder::kShuffled;
      spec.lengths = {tokens, tokens - tokens / 8};
      DiverseArgs& args = problems.emplace_back(spec, seed++).args;
      args.lambda = 0.5f;
      args.tie = oldest_wins ? TieRule::kOldest : TieRule::kRecent;
      args.scale = to_unit ? ScoreScale::kMinMax : ScoreScale::kAsIs;
      if (problems.size() == 3) problems.back().Share({{1, 0}});
    }
    SCOPED_TRACE(support::Describe(spec));
    std::vector<std::vector<int32_t>> want;
    support::ForEachBackend([&](Backend& backend) {
      const auto got = PicksOf(backend, problems, /*together=*/!want.empty());
      if (want.empty()) want = got;
      EXPECT_EQ(got, want);
    });
  }
}

TEST(DiverseParity, LambdaZeroIsTopK) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    HostKvSpec spec;
    spec.kv_heads = 4;
    spec.tokens = 80;
    Problem problem(spec, 2000 + seed);
    problem.args.lambda = 0.0f;
    const KeepList keep = problem.ExpectParity();
    TopKArgs args;
    args.scores = problem.args.scores;
    args.candidates = problem.args.candidates;
    args.forced = problem.args.forced;
    args.tie = problem.args.tie;
    const int32_t* data = problem.counts.data();
    const KeepList best = support::ExpectKeepParity(
        DenseView(data, 1, 4),
        [&](Backend& backend, KeepList* out) { return backend.TopK(args, out); });
    EXPECT_EQ(keep.tokens, best.tokens);
  }
}

TEST(DiverseParity, EveryBackendStopsWhenAsked) {
  HostKvSpec spec;
  spec.tokens = 40;
  Problem problem(spec, 79);
  problem.args.lambda = 0.5f;
  const support::AlwaysCancelled stop;
  const int32_t* data = problem.counts.data();
  support::ForEachBackend([&](Backend& backend) {
    KeepList keep = KeepList::WithCounts(DenseView(data, 1, 1));
    backend.Bind(&stop);
    EXPECT_EQ(backend.Diverse(problem.args, &keep).code(), absl::StatusCode::kCancelled);
  });
}

}  // namespace
}  // namespace kvern
