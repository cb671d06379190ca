// Ops on scores alone, for sequences of many lengths together: every backend leaves what ref leaves
// of each of them alone, in padded rows whose padding nobody touches.
#include <algorithm>
#include <deque>
#include <limits>
#include <span>
#include <vector>

#include "tests/parity/cancelling.h"
#include "tests/parity/parity.h"
#include "tests/support/host_kv.h"

namespace kvern::support {
namespace {

constexpr int64_t kHeads = 3;
constexpr int64_t kPadding = 5;  // scores between rows

struct Shape {
  int64_t layers;
  int64_t tokens;
};
// Around a tile of 256 and a run of 2048 tokens, some without any.
constexpr Shape kShapes[] = {{2, 257}, {1, 0}, {3, 1}, {1, 2300}, {2, 2048}, {0, 40}, {1, 255}};

// Rows of every sequence with padding between them; some scores are not finite.
class Cohort {
 public:
  explicit Cohort(uint64_t seed) {
    constexpr float kInf = std::numeric_limits<float>::infinity();
    constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
    const float mixed[] = {kNaN, -kNaN, kInf, -kInf, 0.0f, -0.0f, 3e38f};
    for (const auto [layers, tokens] : kShapes) {
      const int64_t row = tokens + kPadding;
      const std::vector<float> scores = RandomFloats(layers * kHeads * row, ++seed);
      buffers_.emplace_back(static_cast<int64_t>(scores.size()));
      float* data = buffers_.back().data();
      std::copy(scores.begin(), scores.end(), data);
      for (size_t i = seed % 11; i < scores.size(); i += 11) data[i] = mixed[i % std::size(mixed)];
      ScoreView view = DenseView(data, layers, kHeads, row);
      view.shape[2] = tokens;
      views_.push_back(view);
    }
  }
  std::span<const ScoreView> views() const { return views_; }
  std::vector<std::vector<std::byte>> Bytes() const {
    std::vector<std::vector<std::byte>> bytes;
    for (const GuardedBuffer<float>& buffer : buffers_) {
      EXPECT_TRUE(buffer.Intact()) << "write past the output";
      bytes.emplace_back(buffer.bytes().begin(), buffer.bytes().end());
    }
    return bytes;
  }

 private:
  std::deque<GuardedBuffer<float>> buffers_;
  std::vector<ScoreView> views_;
};

// One mask per sequence of the cohort.
std::deque<std::vector<uint8_t>> Masks() {
  std::deque<std::vector<uint8_t>> masks;
  for (const auto [layers, tokens] : kShapes) {
    const HostKvSpec spec = {.layers = layers, .kv_heads = kHeads, .tokens = tokens};
    masks.push_back(RandomMask(spec, /*chance=*/0.7, masks.size()));
  }
  return masks;
}
MaskView ViewOf(const std::vector<uint8_t>& mask, const ScoreView& scores) {
  return DenseView(mask.data(), scores.shape[0], scores.shape[1], scores.shape[2]);
}

// `op` gets a run of sequences, the first of them number `first`: ref one by one, others all.
void ExpectCohortParity(
    absl::FunctionRef<absl::Status(Backend&, std::span<const ScoreView>, size_t first)> op) {
  std::vector<std::vector<std::byte>> want;
  ForEachBackend([&](Backend& backend) {
    Cohort cohort(/*seed=*/40);
    const std::span<const ScoreView> views = cohort.views();
    if (!want.empty()) {
      ASSERT_TRUE(op(backend, views, 0).ok());
      EXPECT_TRUE(cohort.Bytes() == want) << "differs from ref";
      return;
    }
    for (size_t i = 0; i < views.size(); ++i) {
      ASSERT_TRUE(op(backend, views.subspan(i, 1), i).ok());
    }
    want = cohort.Bytes();
  });
}

TEST(ScoreRowsCohortParity, ZScore) {
  const std::deque<std::vector<uint8_t>> masks = Masks();
  ExpectCohortParity([&](Backend& backend, std::span<const ScoreView> scores, size_t first) {
    std::vector<ZScoreArgs> args;
    for (size_t i = 0; i < scores.size(); ++i) {
      args.push_back({ViewOf(masks[first + i], scores[i]), scores[i]});
    }
    return backend.ZScore(args);
  });
}

TEST(ScoreRowsCohortParity, ZScoreAddsInTheOrderOfRef) {
  constexpr int64_t kTokens = 5000;  // more tiles than a block sums at once
  const std::vector<float> scores = CancellingFloats(kTokens, /*seed=*/50);
  const std::vector<uint8_t> all(kTokens, 1);
  ExpectScoreParity(DenseView(scores.data(), int64_t{1}, int64_t{1}, kTokens), [&](Backend& backend,
                                                                                   ScoreView into) {
    return backend.ZScore(DenseView(all.data(), int64_t{1}, int64_t{1}, kTokens), into);
  });
}

TEST(ScoreRowsCohortParity, Scale) {
  ExpectCohortParity([&](Backend& backend, std::span<const ScoreView> scores, size_t) {
    return backend.Scale(-0.3f, scores);
  });
}

TEST(ScoreRowsCohortParity, Blend) {
  const Cohort others(/*seed=*/90);
  for (const BlendKind kind : {BlendKind::kMax, BlendKind::kSum}) {
    ExpectCohortParity([&](Backend& backend, std::span<const ScoreView> scores, size_t first) {
      std::vector<BlendArgs> args;
      for (size_t i = 0; i < scores.size(); ++i) {
        args.push_back({kind, others.views()[first + i], scores[i]});
      }
      return backend.Blend(args);
    });
  }
}

TEST(ScoreRowsCohortParity, ShareRows) {
  // Groups over layers and heads, rows in descending order; one group is empty.
  std::deque<std::vector<std::vector<int64_t>>> groups;
  for (const auto [layers, tokens] : kShapes) {
    groups.push_back({{}, {}, {}});
    for (int64_t row = layers * kHeads - 1; row >= 0; --row) {
      groups.back()[row % 4 == 0 ? 0 : 2].push_back(row);
    }
  }
  for (const GroupReduce reduce : {GroupReduce::kMax, GroupReduce::kMean}) {
    ExpectCohortParity([&](Backend& backend, std::span<const ScoreView> scores, size_t first) {
      std::vector<ShareRowsArgs> args;
      for (size_t i = 0; i < scores.size(); ++i) {
        args.push_back({&groups[first + i], reduce, scores[i]});
      }
      return backend.ShareRows(args);
    });
  }
}

TEST(ScoreRowsCohortParity, ShareRowsAddsInTheOrderOfTheGroup) {
  constexpr int64_t kTokens = 40;
  constexpr int64_t kRows = 9;
  std::vector<float> scores(kRows * kTokens);
  for (int64_t token = 0; token < kTokens; ++token) {
    const std::vector<float> of_token = CancellingFloats(kRows, /*seed=*/token);
    for (int64_t row = 0; row < kRows; ++row) scores[row * kTokens + token] = of_token[row];
  }
  const std::vector<std::vector<int64_t>> groups = {{7, 2, 4, 0, 8, 1, 6, 3, 5}};
  ExpectScoreParity(
      DenseView(static_cast<const float*>(scores.data()), int64_t{3}, int64_t{3}, kTokens),
      [&](Backend& backend, ScoreView into) {
        return backend.ShareRows(groups, GroupReduce::kMean, into);
      });
}

TEST(ScoreRowsCohortParity, HideScoresCountsTheCandidatesThatWereNaN) {
  const std::deque<std::vector<uint8_t>> masks = Masks();
  std::vector<int64_t> want;
  ExpectCohortParity([&](Backend& backend, std::span<const ScoreView> scores, size_t first) {
    std::vector<int64_t> counts(scores.size(), -1);
    std::vector<HideScoresArgs> args;
    for (size_t i = 0; i < scores.size(); ++i) {
      args.push_back({ViewOf(masks[first + i], scores[i]), scores[i], &counts[i]});
    }
    const absl::Status status = backend.HideScores(args);
    if (scores.size() == 1) {
      want.push_back(counts[0]);
    } else {
      EXPECT_EQ(counts, want);
    }
    return status;
  });
  EXPECT_GT(want[3], 0);
}

}  // namespace
}  // namespace kvern::support
