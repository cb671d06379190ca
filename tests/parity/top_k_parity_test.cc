// Counting selection keeps what sorting keeps.
#include <algorithm>
#include <deque>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern {
namespace {

struct Shape {
  int64_t layers;
  int64_t kv_heads;
  int64_t tokens;
};

// Scores of few distinct values, NaN and both zeros among them, or all distinct.
std::vector<float> ScoresOf(int64_t count, int kind, std::mt19937_64& random) {
  std::vector<float> scores = support::RandomFloats(count, random());
  if (kind == 0) return scores;
  const float few[] = {0.0f,
                       -0.0f,
                       1.0f,
                       -1.0f,
                       0.5f,
                       std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity()};
  for (float& score : scores) {
    if (kind == 1 || random() % 2 == 0) score = few[random() % std::size(few)];
  }
  return scores;
}

TEST(TopKParity, EveryBackendKeepsWhatRefKeeps) {
  std::mt19937_64 random(41);
  for (const Shape& shape : {Shape{1, 1, 1}, {1, 1, 0}, {2, 3, 37}, {1, 2, 700}, {1, 1, 5000}}) {
    for (const int kind : {0, 1, 2}) {
      SCOPED_TRACE(absl::StrCat("tokens ", shape.tokens, " kind ", kind));
      const int64_t rows = shape.layers * shape.kv_heads;
      const std::vector<float> scores = ScoresOf(rows * shape.tokens, kind, random);
      std::vector<uint8_t> forced(scores.size());
      std::vector<uint8_t> candidates(scores.size());
      std::vector<int32_t> counts(rows);
      for (int64_t row = 0; row < rows; ++row) {
        int32_t most = 0;
        for (int64_t i = row * shape.tokens; i < (row + 1) * shape.tokens; ++i) {
          const uint64_t draw = random() % 8;
          forced[i] = draw == 0;
          candidates[i] = draw > 1;
          counts[row] += forced[i];
          most += candidates[i];
        }
        counts[row] += most == 0 ? 0 : static_cast<int32_t>(random() % (most + 1));
      }
      TopKArgs args;
      args.scores = DenseView(scores.data(), shape.layers, shape.kv_heads, shape.tokens);
      const uint8_t* forced_data = forced.data();
      const uint8_t* candidate_data = candidates.data();
      args.forced = DenseView(forced_data, shape.layers, shape.kv_heads, shape.tokens);
      args.candidates = DenseView(candidate_data, shape.layers, shape.kv_heads, shape.tokens);
      const int32_t* count_data = counts.data();
      for (const TieRule tie : {TieRule::kRecent, TieRule::kOldest}) {
        args.tie = tie;
        support::ExpectKeepParity(
            DenseView(count_data, shape.layers, shape.kv_heads),
            [&](Backend& backend, KeepList* keep) { return backend.TopK(args, keep); });
      }
    }
  }
}

// One sequence. Scores are few units of the last place apart, so that every bit of a score counts
// and many are equal; they lie in every second float.
struct Sequence {
  Sequence(const Shape& given, bool shared_masks, std::mt19937_64& random) : shape(given) {
    const int64_t rows = shape.layers * shape.kv_heads;
    scores.assign(rows * shape.tokens * 2, 1e30f);
    for (size_t i = 0; i < scores.size(); i += 2) {
      const float score = 1.0f + static_cast<float>(random() % 40) * 0x1p-23f;
      scores[i] = random() % 4 == 0 ? -score : score;
    }
    forced.resize((shared_masks ? 1 : rows) * shape.tokens);
    candidates.resize(forced.size());
    for (size_t i = 0; i < forced.size(); ++i) {
      const uint64_t draw = random() % 8;
      forced[i] = draw == 0;
      candidates[i] = draw > 1;
    }
    args.forced = Masks(forced, shared_masks);
    args.candidates = Masks(candidates, shared_masks);
    for (int64_t row = 0; row < rows; ++row) {
      int32_t least = 0, most = 0;
      for (int64_t token = 0; token < shape.tokens; ++token) {
        const int64_t layer = row / shape.kv_heads, head = row % shape.kv_heads;
        least += args.forced(layer, head, token);
        most += args.forced(layer, head, token) | args.candidates(layer, head, token);
      }
      counts.push_back(least + static_cast<int32_t>(random() % (most - least + 1)));
    }
  }

  MaskView Masks(const std::vector<uint8_t>& mask, bool shared) const {
    const uint8_t* const data = mask.data();
    MaskView view = DenseView(data, shape.layers, shape.kv_heads, shape.tokens);
    if (shared) view.stride[0] = view.stride[1] = 0;
    return view;
  }

  Shape shape;
  std::vector<float> scores;
  std::vector<uint8_t> forced;
  std::vector<uint8_t> candidates;
  std::vector<int32_t> counts;
  TopKArgs args;  // but for scores, tie and keep
};

// What every sequence keeps, by one call or one each, with scores where the backend reads them.
std::vector<std::vector<int32_t>> KeptBy(Backend& backend, const std::deque<Sequence>& sequences,
                                         TieRule tie, bool together) {
  std::deque<Buffer> scores;
  std::deque<KeepList> keeps;
  std::vector<TopKArgs> cohort;
  for (const Sequence& sequence : sequences) {
    const Shape& shape = sequence.shape;
    const std::span<const std::byte> bytes = std::as_bytes(std::span(sequence.scores));
    scores.push_back(backend.Allocate(std::max<int64_t>(1, std::ssize(bytes))).value());
    EXPECT_TRUE(backend.CopyIn(bytes, scores.back().data()).ok());
    const int32_t* const counts = sequence.counts.data();
    keeps.push_back(KeepList::WithCounts(DenseView(counts, shape.layers, shape.kv_heads)));
    TopKArgs& args = cohort.emplace_back(sequence.args);
    args.scores = DenseView(reinterpret_cast<const float*>(scores.back().data()), shape.layers,
                            shape.kv_heads, shape.tokens * 2);
    args.scores.shape[2] = shape.tokens;
    args.scores.stride[2] = 2;
    args.tie = tie;
    args.keep = &keeps.back();
  }
  if (together) {
    EXPECT_TRUE(backend.TopK(cohort).ok());
  } else {
    for (const TopKArgs& args : cohort) EXPECT_TRUE(backend.TopK(std::span(&args, 1)).ok());
  }
  std::vector<std::vector<int32_t>> kept;
  for (const KeepList& keep : keeps) kept.push_back(keep.tokens);
  return kept;
}

TEST(TopKParity, SequencesTogetherInMemoryOfTheBackendAreEachOfThemAlone) {
  std::mt19937_64 random(43);
  std::deque<Sequence> sequences;
  for (const Shape& shape : {Shape{1, 2, 33},
                             {2, 2, 0},
                             {2, 2, 2049},
                             {1, 2, 1},
                             {3, 2, 2048},
                             {1, 2, 4500},
                             {2, 2, 31}}) {
    sequences.emplace_back(shape, /*shared_masks=*/sequences.size() % 2 == 1, random);
  }
  for (const TieRule tie : {TieRule::kRecent, TieRule::kOldest}) {
    SCOPED_TRACE(tie == TieRule::kRecent ? "recent" : "oldest");
    std::vector<std::vector<int32_t>> want;
    support::ForEachBackend([&](Backend& backend) {
      const auto got = KeptBy(backend, sequences, tie, /*together=*/!want.empty());
      if (want.empty()) want = got;
      EXPECT_EQ(got, want);
    });
  }
}

TEST(TopKParity, EveryBackendStopsWhenAsked) {
  const std::vector<float> scores = {1.0f, 2.0f};
  const std::vector<uint8_t> ones = {1, 1};
  const std::vector<uint8_t> zeros = {0, 0};
  const int32_t count = 1;
  TopKArgs args;
  args.scores = DenseView(scores.data(), 1, 1, 2);
  args.candidates = DenseView(ones.data(), 1, 1, 2);
  args.forced = DenseView(zeros.data(), 1, 1, 2);
  const support::AlwaysCancelled stop;
  support::ForEachBackend([&](Backend& backend) {
    KeepList keep = KeepList::WithCounts(DenseView(&count, 1, 1));
    backend.Bind(&stop);
    EXPECT_EQ(backend.TopK(args, &keep).code(), absl::StatusCode::kCancelled);
    backend.Bind(nullptr);
    EXPECT_TRUE(backend.TopK(args, &keep).ok());
  });
}

}  // namespace
}  // namespace kvern
