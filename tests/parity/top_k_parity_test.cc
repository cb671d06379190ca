// Counting selection keeps what sorting keeps.
#include <limits>
#include <random>
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
